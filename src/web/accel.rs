//! nginx with TLS in front of `stillage serve --accel`: logins, pushes and small answers pass through,
//! blobs are sent by nginx from the tree.

use std::net::SocketAddr;

use super::{Server, Site, SiteError, fill, host};

/// What stands in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Where nginx listens, under which name, with which certificate; and ROOT, by its path without
    /// symlinks.
    pub site: Site,
    /// Where Stillage listens, on this machine.
    pub upstream: SocketAddr,
    /// What `--accel` was given, without a slash at its end.
    pub prefix: String,
}

impl Front {
    /// The configuration, to be included in nginx's `http` block.
    ///
    /// # Errors
    /// A path or the name cannot be written in nginx's language.
    pub fn nginx(&self) -> Result<String, SiteError> {
        let Front { site, upstream, prefix } = self;
        let name = site.name.as_deref().map(host).transpose()?;
        let tls = match &site.tls {
            None => None,
            Some((certificate, key)) => {
                Some((Server::Nginx.path(certificate)?, Server::Nginx.path(key)?))
            }
        };
        let root = Server::Nginx.path(&site.root)?;
        let ssl = if tls.is_some() { " ssl http2" } else { "" };
        let values = [
            ("LISTEN", format!("{}{ssl}", site.listen)),
            ("SERVER_NAME", name.unwrap_or("_").to_owned()),
            ("EXTERNAL", site.external(name)),
            ("TLS", Server::Nginx.tls(tls.as_ref())),
            ("UPSTREAM", upstream.to_string()),
            ("ROOT", root.trim_end_matches('/').to_owned()),
            ("PREFIX", prefix.clone()),
        ];
        Ok(fill(include_str!("front.conf"), &values))
    }
}

impl Site {
    /// The URL under which clients come.
    fn external(&self, name: Option<&str>) -> String {
        let (scheme, usual) = if self.tls.is_some() { ("https", 443) } else { ("http", 80) };
        let host = name.unwrap_or("NAME");
        match self.listen.port() {
            port if port == usual => format!("{scheme}://{host}"),
            port => format!("{scheme}://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(root: &str) -> Front {
        let site = Site {
            root: root.into(),
            listen: "192.0.2.7:443".parse().unwrap(),
            tls: Some(("/etc/ssl/registry.pem".into(), "/etc/ssl/registry.key".into())),
            name: Some("registry.example".into()),
        };
        let upstream = "127.0.0.1:5000".parse().unwrap();
        Front { site, upstream, prefix: "/_blobs".into() }
    }

    #[test]
    fn every_word_is_filled_in() {
        let mut plain = front("/srv/reg/");
        let text = plain.nginx().unwrap();
        for line in [
            "    server 127.0.0.1:5000;",
            "    listen 192.0.2.7:443 ssl http2;",
            "    server_name registry.example;",
            "    ssl_certificate \"/etc/ssl/registry.pem\";",
            "    ssl_certificate_key \"/etc/ssl/registry.key\";",
            "    ssl_conf_command Options KTLS;",
            "#         --external-url https://registry.example --anonymous none --accel /_blobs",
            "    location /_blobs/ {",
            "        alias \"/srv/reg/\";",
            "        disable_symlinks on \"from=/srv/reg\";",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in {text}");
        }
        (plain.site.tls, plain.site.name) = (None, None);
        let text = plain.nginx().unwrap();
        assert!(!text.contains("ssl") && text.contains("listen 192.0.2.7:443;"), "{text}");
        assert!(text.contains("--external-url http://NAME:443 "), "{text}");
        assert_eq!(text.matches('@').count(), 6, "three named locations, and no key: {text}");
    }

    #[test]
    fn clients_are_told_the_port_unless_it_is_the_usual_one() {
        let url = |port: u16, tls: bool| {
            let mut site = front("/srv/reg").site;
            site.listen.set_port(port);
            site.tls = site.tls.filter(|_| tls);
            site.external(Some("h"))
        };
        assert_eq!([url(443, true), url(80, false)], ["https://h", "http://h"]);
        assert_eq!([url(80, true), url(443, false)], ["https://h:80", "http://h:443"]);
        assert_eq!([url(5443, true), url(8080, false)], ["https://h:5443", "http://h:8080"]);
    }

    /// Whoever writes the configuration by hand writes what would be printed.
    #[test]
    fn the_page_has_no_other_lines() {
        let words = |line: &str| {
            let line = line.split(" #").next().unwrap_or_default().replace('"', "");
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let printed: Vec<String> = front("/srv/reg").nginx().unwrap().lines().map(words).collect();
        let page = include_str!("../../docs/proxy.md");
        let examples = page.lines().filter(|line| line.starts_with("    "));
        let directives: Vec<String> =
            examples.map(words).filter(|line| line.ends_with(';')).collect();
        assert!(directives.len() > 30, "{directives:?}");
        for line in directives.into_iter().filter(|line| !line.starts_with("listen ")) {
            assert!(printed.contains(&line), "{line:?} of docs/proxy.md is not printed");
        }
    }

    #[test]
    fn paths_are_quoted_or_refused() {
        let text = front("/srv/a \"b\" \\c; }/").nginx().unwrap();
        assert!(text.contains(r#"alias "/srv/a \"b\" \\c; }/";"#), "{text}");
        for bad in ["/srv/$root", "/srv/a\nb"] {
            assert!(matches!(front(bad).nginx(), Err(SiteError::Path { .. })), "{bad:?}");
        }
    }
}
