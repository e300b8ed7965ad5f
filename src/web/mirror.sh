#!/bin/sh
# One round of a mirror: makes a read-only copy of a tree, or brings it up to date, so that a web server
# may serve it all the while (stillage static nginx).
#
# Run it from a timer, as root or as an account that can read all of the origin. It exits with 0 when the
# copy is up to date; after anything else it is as sound as before, and the next round goes on.
#
# What names blobs is set aside first, and published when the blobs are there; blobs go last. So whoever
# pulls from the copy never meets a tag without its blobs, and what was deleted is gone after the round.
set -euf

ORIGIN=@ORIGIN@
MIRROR=@MIRROR@
# What is set aside.
STAGE=@STAGE@
# A file that the first round puts into MIRROR. It says that what lies there may be overwritten.
MARK=.stillage-mirror

# Nothing is overwritten that is no mirror, wherever it is: rsync shows what is there.
listed=$(rsync --no-motd --list-only "$MIRROR/" 2>&1) || case $listed in
  *change_dir*"No such file or directory"*) listed='d--------- 0 0/0/0 0:0:0 .' ;;
  *)
    printf '%s\n' "$listed" >&2
    echo "$MIRROR cannot be looked at: nothing is changed" >&2
    exit 1
    ;;
esac
was_listed='' is_mirror='' is_used=''
while IFS= read -r name; do
  case $name in
    .) was_listed=yes ;;
    "$MARK") is_mirror=yes ;;
    '' | lost+found) ;;
    *) is_used=yes ;;
  esac
done <<END
$(printf '%s\n' "$listed" | sed -n 's|^[-a-zA-Z]\{10\} *[0-9,.]* [0-9/]* [0-9:]* ||p')
END
if [ -z "$was_listed" ] || { [ -n "$is_used" ] && [ -z "$is_mirror" ]; }; then
  echo "$MIRROR is not empty, and no mirror (it has no $MARK): nothing is changed" >&2
  exit 1
fi
@LOCK@
umask 077
mkdir -p "$STAGE"
exec 9>"$STAGE/.running"
flock -n 9 || { echo "a round is running already" >&2; exit 1; }

# The registry's own room, locks, journals and files in the making stay where they are.
NEVER='--exclude=/.stillage/ --exclude=/lost+found/ --exclude=.lock --exclude=_log.jsonl --exclude=_log.*.jsonl --exclude=.*.???????????????? --filter=H__manifests/.of'
# Blobs are files: a symlink among them was planted.
BLOBS='--no-links --include=*/ --include=oci-layout --include=blobs/** --exclude=*'
# Manifests by digest, and all other names: index.json, tags, lists.
DIGESTS='--exclude=blobs/ --include=*/ --include=_manifests/sha256/* --include=_manifests/sha512/* --exclude=*'
OTHERS='--exclude=_manifests/sha256/ --exclude=_manifests/sha512/'
NAMES='--exclude=blobs/ --include=*/ --include=index.json --include=_* --include=_*/** --exclude=*'

# Files that vanish meanwhile (24) were replaced or deleted: the next round sees what came of it.
copy() {
  code=0
  rsync -aHA --no-D --numeric-ids $NEVER "$@" >/dev/null || code=$?
  [ "$code" -eq 0 ] || [ "$code" -eq 24 ] || exit "$code"
}

# Names change within the second and keep their length: they are compared by content. What a tag names may
# contain other manifests; these are looked at before the tags, for what goes meanwhile, and after them, for
# what comes.
copy --checksum --delete $DIGESTS "$ORIGIN/" "$STAGE/names/"
copy --checksum --delete $OTHERS $NAMES "$ORIGIN/" "$STAGE/names/"
copy --checksum $DIGESTS "$ORIGIN/" "$STAGE/names/"

# Who may write to a repository at the origin can plant symlinks to any file, and a web server on the mirror
# may follow them. The tree's own lead from a name in _manifests/ to a blob beside it: no others go on.
(
  cd "$STAGE/names"
  find . -type l \
    ! \( -path '*/_manifests/*' ! -path '*/_manifests/*/*' \
      -lname '../blobs/sha[25]??/*' ! -lname '../blobs/*/*/*' \) \
    ! \( -path '*/_manifests/sha[25]??/*' ! -path '*/_manifests/*/*/*' \
      -lname '../../blobs/sha[25]??/*' ! -lname '../../blobs/*/*/*' \) \
    -delete
)
if [ -z "$(find "$STAGE/names" -type f -name index.json -print | head -n 1)" ]; then
  echo "there is no repository in $ORIGIN: nothing is changed" >&2
  exit 1
fi
if [ -z "$is_mirror" ]; then
  echo "By stillage static mirror: what is put here goes with the next round." >"$STAGE/$MARK"
  copy "$STAGE/$MARK" "$MIRROR/"
fi
copy $BLOBS "$ORIGIN/" "$MIRROR/"
copy --checksum $DIGESTS "$STAGE/names/" "$MIRROR/"
copy --checksum --delete-after $NAMES "$STAGE/names/" "$MIRROR/"
copy --delete $BLOBS "$ORIGIN/" "$MIRROR/"
