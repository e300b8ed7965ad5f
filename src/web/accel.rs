//! nginx with TLS in front of `stillage serve --accel`: logins, pushes and small answers pass through,
//! blobs are sent by nginx from the tree.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What stands in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Front<'a> {
    /// Where nginx listens: `443` or `192.0.2.7:443`.
    pub listen: &'a str,
    /// The name under which clients reach it.
    pub server_name: &'a str,
    /// The certificate with its chain, as PEM.
    pub certificate: &'a Path,
    /// The certificate's key.
    pub key: &'a Path,
    /// Where Stillage listens, on this machine.
    pub upstream: SocketAddr,
    /// ROOT, by its path without symlinks.
    pub root: &'a Path,
    /// What `--accel` was given, without a slash at its end.
    pub prefix: &'a str,
}

/// nginx has no way to write this: `$` begins a variable, however it is quoted.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} cannot stand in a configuration of nginx: its path has a character that nginx reads otherwise"
)]
pub struct Unspeakable(PathBuf);

/// The configuration, to be included in nginx's `http` block.
///
/// # Errors
/// A path has a character that cannot be quoted.
pub fn nginx(front: &Front<'_>) -> Result<String, Unspeakable> {
    let Front { listen, server_name, upstream, prefix, .. } = front;
    let root = front.root.to_str().map(|root| root.trim_end_matches('/'));
    let root = root.ok_or_else(|| Unspeakable(front.root.to_owned()))?;
    let quoted = |path: &Path| quote(path).ok_or_else(|| Unspeakable(path.to_owned()));
    let (certificate, key) = (quoted(front.certificate)?, quoted(front.key)?);
    let (files, from) = (quoted(format!("{root}/").as_ref())?, quoted(root.as_ref())?);
    Ok(format!(
        r##"# A registry behind nginx: TLS here, logins and permissions in Stillage, blobs by sendfile from its tree.
#
#     stillage serve {from} --listen {upstream} --trusted-proxy 127.0.0.1 \
#         --external-url https://{server_name} --anonymous none --accel {prefix}
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
    listen {listen} ssl http2;
    server_name {server_name};
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    # With kernel TLS (the module `tls`) sendfile works under TLS too; without it nginx reads the file.
    ssl_conf_command Options KTLS;

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
        proxy_set_header X-Forwarded-Proto https;
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
        alias {files};
        disable_symlinks on from={from};
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
    ))
}

/// A path as one word of a configuration.
fn quote(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    if text.contains('$') || text.contains(char::is_control) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(root: &str) -> Result<String, Unspeakable> {
        nginx(&Front {
            listen: "443",
            server_name: "registry.example",
            certificate: Path::new("/etc/ssl/registry.pem"),
            key: Path::new("/etc/ssl/registry.key"),
            upstream: "127.0.0.1:5000".parse().unwrap(),
            root: Path::new(root),
            prefix: "/_blobs",
        })
    }

    #[test]
    fn every_word_is_filled_in() {
        let text = of("/srv/reg").unwrap();
        for line in [
            "    server 127.0.0.1:5000;",
            "    listen 443 ssl http2;",
            "    server_name registry.example;",
            "    ssl_certificate \"/etc/ssl/registry.pem\";",
            "    ssl_certificate_key \"/etc/ssl/registry.key\";",
            "    location /_blobs/ {",
            "        alias \"/srv/reg/\";",
            "        disable_symlinks on from=\"/srv/reg\";",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in {text}");
        }
    }

    /// Whoever writes the configuration by hand writes what would be printed.
    #[test]
    fn the_page_has_no_other_lines() {
        let words = |line: &str| {
            let line = line.split(" #").next().unwrap_or_default().replace('"', "");
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let printed: Vec<String> = of("/srv/reg").unwrap().lines().map(words).collect();
        let page = include_str!("../../docs/proxy.md");
        let examples = page.lines().filter(|line| line.starts_with("    "));
        let directives: Vec<String> =
            examples.map(words).filter(|line| line.ends_with(';')).collect();
        assert!(directives.len() > 30, "{directives:?}");
        for line in directives {
            assert!(printed.contains(&line), "{line:?} of docs/proxy.md is not printed");
        }
    }

    #[test]
    fn paths_are_quoted_or_refused() {
        let text = of("/srv/a \"b\" \\c; }/").unwrap();
        assert!(text.contains(r#"alias "/srv/a \"b\" \\c; }/";"#), "{text}");
        for bad in ["/srv/$root", "/srv/a\nb"] {
            assert_eq!(of(bad), Err(Unspeakable(bad.into())));
        }
    }
}
