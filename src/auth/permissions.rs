//! What the kernel would let somebody do to a directory or a file, decided on plain values.
//!
//! The rules are those of path_permission(7) and acl(5) as Linux has them (fs/namei.c,
//! `acl_permission_check`; fs/posix_acl.c, `posix_acl_permission`), quirks included: an ACL whose
//! group bits in the mode are all off is not looked at, and rights that two groups give are not
//! added up.

/// Read.
pub const READ: u8 = 4;
/// Write.
pub const WRITE: u8 = 2;
/// Search a directory.
pub const SEARCH: u8 = 1;

/// Owner, mode and ACL of a directory or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its mode; the nine permission bits count.
    pub mode: u16,
    /// Its ACL, if it has one beyond the mode: in the kernel's order (owner, users, owning group,
    /// groups, mask, other).
    pub acl: Option<Vec<Entry>>,
}

/// An entry of an ACL: whom it is about, and the bits [`READ`], [`WRITE`], [`SEARCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom it is about.
    pub whom: Whom,
    /// What it gives.
    pub bits: u8,
}

/// Whom an entry of an ACL is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The owner.
    Owner,
    /// A user by number.
    User(u32),
    /// The owning group.
    OwningGroup,
    /// A group by number.
    Group(u32),
    /// The most that users, the owning group and groups get.
    Mask,
    /// Everybody else.
    Other,
}

/// What the kernel knows of somebody.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The user; `None` for somebody without an account, who owns nothing and is named nowhere.
    pub uid: Option<u32>,
    /// All groups.
    pub groups: &'a [u32],
}

/// What was decided, and by which bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether all that was wanted is given.
    pub allowed: bool,
    /// What decided.
    pub by: By,
}

/// The bits that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The mode's owner bits.
    Owner,
    /// The ACL's entry for this user.
    User(u32),
    /// The owning group's bits, in the mode or in the ACL.
    OwningGroup,
    /// The ACL's entry for this group.
    Group(u32),
    /// An entry of the ACL would give it, and the mask takes it away.
    Mask,
    /// The bits for everybody else.
    Other,
    /// The ACL is not one that Linux would have stored: nobody gets anything.
    Malformed,
}

impl Credentials<'_> {
    fn is_user(&self, uid: u32) -> bool {
        self.uid == Some(uid)
    }

    fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&group)
    }
}

impl Permissions {
    /// Decides on **all** of the `wanted` bits at once, as the kernel does for one system call.
    /// Nothing is said here of uid 0, which the kernel lets pass.
    pub fn rule(&self, who: Credentials<'_>, wanted: u8) -> Ruling {
        let given = |bits: u16, by| Ruling { allowed: u16::from(wanted) & !bits == 0, by };
        if who.is_user(self.owner) {
            return given(self.mode >> 6, By::Owner);
        }
        if let Some(acl) = &self.acl
            && self.mode & 0o070 != 0
        {
            return self.rule_of_acl(acl, who, wanted);
        }
        if who.is_in(self.group) {
            return given(self.mode >> 3, By::OwningGroup);
        }
        given(self.mode, By::Other)
    }

    fn rule_of_acl(&self, acl: &[Entry], who: Credentials<'_>, wanted: u8) -> Ruling {
        let mask = acl.iter().find(|entry| entry.whom == Whom::Mask);
        let mask = mask.map_or(READ | WRITE | SEARCH, |entry| entry.bits);
        let has = |bits: u8| wanted & !bits == 0;
        let masked = |bits: u8, by| match (has(bits), has(bits & mask)) {
            (true, false) => Ruling { allowed: false, by: By::Mask },
            (_, allowed) => Ruling { allowed, by },
        };
        // A group that gives all decides; of several that do not, the first is named.
        let mut refused = None;
        for Entry { whom, bits } in acl {
            let by = match *whom {
                Whom::User(uid) if who.is_user(uid) => return masked(*bits, By::User(uid)),
                Whom::OwningGroup if who.is_in(self.group) => By::OwningGroup,
                Whom::Group(gid) if who.is_in(gid) => By::Group(gid),
                Whom::Other => {
                    let other = Ruling { allowed: has(*bits), by: By::Other };
                    return refused.unwrap_or(other);
                }
                _ => continue,
            };
            if has(*bits) {
                return masked(*bits, by);
            }
            refused = refused.or(Some(Ruling { allowed: false, by }));
        }
        Ruling { allowed: false, by: By::Malformed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(mode: u16) -> Permissions {
        Permissions { owner: 1, group: 10, mode, acl: None }
    }

    fn who(uid: u32, groups: &[u32]) -> Credentials<'_> {
        Credentials { uid: Some(uid), groups }
    }

    #[test]
    fn the_first_class_that_fits_decides_alone() {
        let ruling = |mode, who, wanted| {
            let Ruling { allowed, by } = plain(mode).rule(who, wanted);
            (allowed, by)
        };
        assert_eq!(ruling(0o077, who(1, &[10]), READ), (false, By::Owner));
        assert_eq!(ruling(0o707, who(2, &[10]), READ), (false, By::OwningGroup));
        assert_eq!(ruling(0o070, who(2, &[9]), READ), (false, By::Other));
        assert_eq!(ruling(0o770, who(2, &[9, 10]), READ | WRITE), (true, By::OwningGroup));
        let nobody = Credentials { uid: None, groups: &[] };
        assert_eq!(ruling(0o775, nobody, READ | SEARCH), (true, By::Other));
        assert_eq!(ruling(0o775, nobody, WRITE), (false, By::Other));
    }

    #[test]
    fn acls_name_users_and_groups_beneath_a_mask() {
        let entry = |whom, bits| Entry { whom, bits };
        let acl = |mask| Permissions {
            mode: 0o700 | u16::from(mask) << 3 | 5,
            acl: Some(vec![
                entry(Whom::Owner, 7),
                entry(Whom::User(2), 7),
                entry(Whom::OwningGroup, 5),
                entry(Whom::Group(20), 6),
                entry(Whom::Mask, mask),
                entry(Whom::Other, 5),
            ]),
            ..plain(0)
        };
        let ruling = |mask, who, wanted| {
            let Ruling { allowed, by } = acl(mask).rule(who, wanted);
            (allowed, by)
        };
        assert_eq!(ruling(7, who(2, &[]), WRITE), (true, By::User(2)));
        assert_eq!(ruling(5, who(2, &[]), WRITE), (false, By::Mask));
        assert_eq!(ruling(7, who(3, &[20]), WRITE), (true, By::Group(20)));
        assert_eq!(ruling(7, who(3, &[10]), WRITE), (false, By::OwningGroup));
        // One group gives search, the other write: neither gives both.
        assert_eq!(ruling(7, who(3, &[10, 20]), WRITE | SEARCH), (false, By::OwningGroup));
        assert_eq!(ruling(7, who(3, &[]), READ), (true, By::Other));
        // An empty mask switches the whole ACL off.
        assert_eq!(ruling(0, who(2, &[]), READ), (true, By::Other));
        assert_eq!(ruling(0, who(3, &[10]), READ), (false, By::OwningGroup));
    }
}
