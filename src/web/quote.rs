//! Paths in double quotes, in each server's language; what cannot be quoted is refused.

use std::path::Path;

use super::{Server, SiteError};

impl Server {
    /// A path as it stands between double quotes.
    pub(super) fn path(self, path: &Path) -> Result<String, SiteError> {
        let refused = |what| SiteError::Path { server: self, path: path.to_owned(), what };
        let text = path.to_str().ok_or_else(|| refused("a name that is not UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(refused("a control character"));
        }
        for (bad, what) in self.unquotable() {
            if text.contains(*bad) {
                return Err(refused(what));
            }
        }
        Ok(text.replace('\\', r"\\").replace('"', "\\\""))
    }

    /// What means something else, also between quotes.
    fn unquotable(self) -> &'static [(&'static [char], &'static str)] {
        match self {
            Server::Nginx => &[(&['$'], "'$', which begins a variable")],
            Server::Caddy => &[
                (&['{', '}'], "a brace, which begins a placeholder"),
                (&['*', '?', '[', '\\'], "one of * ? [ \\, which are patterns"),
            ],
            Server::Apache => &[
                (&['$', '%'], "'$' or '%', which begin variables"),
                (&['*', '?', '[', '\\'], "one of * ? [ \\, which are patterns"),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_or_refused_by_what_the_server_reads() {
        let said = |server: Server, path: &str| server.path(Path::new(path)).ok();
        for server in [Server::Nginx, Server::Caddy, Server::Apache] {
            assert_eq!(said(server, "/a b/ü/#;'x'"), Some("/a b/ü/#;'x'".to_owned()));
            assert_eq!(said(server, "/a\"b"), Some("/a\\\"b".to_owned()));
            assert_eq!(said(server, "/a\nb"), None);
        }
        assert_eq!(said(Server::Nginx, "/a\\b{c}*"), Some("/a\\\\b{c}*".to_owned()));
        assert_eq!(said(Server::Nginx, "/a$b"), None);
        assert_eq!(said(Server::Caddy, "/a$b"), Some("/a$b".to_owned()));
        for (server, bad) in [
            (Server::Caddy, ["/{a", "/a*", "/[a]", "/a\\"]),
            (Server::Apache, ["/a$b", "/a%b", "/a?", "/a\\"]),
        ] {
            for path in bad {
                let refused = server.path(Path::new(path)).unwrap_err();
                assert!(refused.to_string().contains(&format!("{path:?}")), "{refused}");
            }
        }
    }
}
