//! Addresses as messages show them.

/// An address without what may be a secret in it: what stands before an `@`, and what follows a `?` or `#`. The address need not be a
/// URL, nor be right.
pub fn masked(address: &str) -> String {
    let (scheme, rest) = match address.find("://") {
        Some(at) => address.split_at(at + 3),
        None => ("", address),
    };
    let end = rest.rfind('@').map_or(0, |at| at + 1);
    let (user, place) = rest.split_at(end);
    let hidden = if user.is_empty() { "" } else { "***@" };
    match place.find(['?', '#']) {
        Some(at) => format!("{scheme}{hidden}{}***", &place[..=at]),
        None => format!("{scheme}{hidden}{place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_an_address_is_shown() {
        for (address, shown) in [
            ("s3://key:se/cr@et@bucket/prefix", "s3://***@bucket/prefix"),
            ("https://store.example?sig=secret", "https://store.example?***"),
            ("az://container?sv=1&sig=a@b", "az://***@b"),
            ("key:secret@bucket", "***@bucket"),
            ("s3://bucket#secret", "s3://bucket#***"),
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("/backup", "/backup"),
            ("", ""),
        ] {
            assert_eq!(masked(address), shown);
        }
    }
}
