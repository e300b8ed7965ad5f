//! nginx with TLS in front of `stillage serve --accel`: logins, pushes and small answers pass through,
//! blobs are sent by nginx from the tree.

use std::net::SocketAddr;

use super::{Server, Site, SiteError, host};

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
        let root = root.trim_end_matches('/');
        let (scheme, ssl) = if tls.is_some() { ("https", " ssl http2") } else { ("http", "") };
        Ok(text(&Words {
            listen: format!("{}{ssl}", site.listen),
            server_name: name.unwrap_or("_"),
            external: format!("{scheme}://{}", name.unwrap_or("NAME")),
            tls: tls.map_or_else(String::new, |(certificate, key)| {
                certificate_lines(&certificate, &key)
            }),
            upstream: *upstream,
            root,
            prefix,
        }))
    }
}

struct Words<'a> {
    listen: String,
    server_name: &'a str,
    external: String,
    tls: String,
    upstream: SocketAddr,
    root: &'a str,
    prefix: &'a str,
}

fn certificate_lines(certificate: &str, key: &str) -> String {
    format!(
        r##"    ssl_certificate "{certificate}";
    ssl_certificate_key "{key}";
    ssl_protocols TLSv1.2 TLSv1.3;
    # With kernel TLS (the module `tls`) sendfile works under TLS too; without it nginx reads the file.
    ssl_conf_command Options KTLS;
"##
    )
}

fn text(words: &Words<'_>) -> String {
    let Words { listen, server_name, external, tls, upstream, root, prefix } = words;
    format!(
        r##"# A registry behind nginx: TLS here, logins and permissions in Stillage, blobs by sendfile from its tree.
#
#     stillage serve "{root}" --listen {upstream} --trusted-proxy 127.0.0.1 \
#         --external-url {external} --anonymous none --accel {prefix}
#
# (--anonymous pull lets everybody who reaches nginx pull what `others` may read.)
# nginx 1.22 or later. Put it into /etc/nginx/conf.d/ and run `nginx -t && nginx -s reload`.

upstream stillage {{
    server {upstream};
    keepalive 32;
    # Shorter than Stillage's own patience: no request meets a connection that is just being closed.
    keepalive_timeout 30s;
}}

server {{
    listen {listen};
    server_name {server_name};
{tls}
    # Layers are as large as they are, and a token for many repositories is a long header.
    client_max_body_size 0;
    large_client_header_buffers 4 32k;
    # A digest is of the bytes as they are.
    gzip off;

    location / {{
        proxy_pass http://stillage;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # What clients themselves say of where they come from is thrown away.
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Real-IP "";
        proxy_set_header Forwarded "";
        # Straight through: no layer is first written to nginx's disk.
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_buffer_size 32k;
        proxy_buffers 8 32k;
        # A blob that somebody dropped in is hashed before its first byte goes out.
        proxy_read_timeout 900s;
        proxy_send_timeout 900s;
    }}

    # Stillage names a file here, when it has decided that the client may have it. Nobody else can:
    # asked for from outside, there is nothing.
    location {prefix}/ {{
        internal;
        alias "{root}/";
        disable_symlinks on "from={root}";
        types {{ }}
        default_type application/octet-stream;
        sendfile on;
        sendfile_max_chunk 2m;
        tcp_nopush on;
        # What Stillage said of the blob. Its ETag is the digest, also for If-Range.
        etag off;
        add_header ETag $upstream_http_etag;
        if_modified_since off;
        add_header Last-Modified "";
        max_ranges 1;
        add_header Docker-Content-Digest $upstream_http_docker_content_digest;
        add_header Docker-Distribution-Api-Version $upstream_http_docker_distribution_api_version;
        add_header X-Content-Type-Options $upstream_http_x_content_type_options;
        add_header Content-Security-Policy $upstream_http_content_security_policy;
        add_header X-Request-Id $upstream_http_x_request_id;
        error_page 403 =503 @unreadable;
        error_page 404 @gone;
        error_page 416 @outside;
    }}

    # Stillage believed that nginx may read it: restart Stillage after a change of nginx's groups.
    location @unreadable {{
        default_type application/json;
        add_header Cache-Control no-store always;
        add_header Retry-After 5 always;
        return 503 '{{"errors":[{{"code":"UNAVAILABLE","message":"the web server cannot read this blob: its error log says why"}}]}}';
    }}

    location @gone {{
        default_type application/json;
        add_header Cache-Control no-store always;
        return 404 '{{"errors":[{{"code":"BLOB_UNKNOWN","message":"there is no such blob"}}]}}';
    }}

    location @outside {{
        default_type application/json;
        add_header Cache-Control no-store always;
        return 416 '{{"errors":[{{"code":"RANGE_INVALID","message":"the range lies outside of the blob"}}]}}';
    }}
}}
"##
    )
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
            "    location /_blobs/ {",
            "        alias \"/srv/reg/\";",
            "        disable_symlinks on \"from=/srv/reg\";",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in {text}");
        }
        (plain.site.tls, plain.site.name) = (None, None);
        let text = plain.nginx().unwrap();
        assert!(!text.contains("ssl") && text.contains("listen 192.0.2.7:443;"), "{text}");
        assert!(text.contains("--external-url http://NAME"), "{text}");
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
