//! Values of injected headers: sealed when a policy comes in, opened for the request that gets them, and shown to nobody.

use std::sync::Arc;

use sandbank_model::{HEADER_VALUE_LEN_MAX, HeaderRule, HeaderSecret, NetworkPolicy, TenantId};
use zeroize::Zeroizing;

use super::ActiveNetwork;
use crate::control::{Control, Inner};
use crate::secrets::Purpose;
use crate::types::{HeaderValue, NetworkRequest};
use crate::{Error, ErrorKind, Result};

/// Kind of these secrets; part of what is authenticated.
const KIND: &str = "network-header";

/// What a value is for: one header to the hosts of one rule. A value that is copied to other hosts does not open there.
fn purpose_name<S>(rule: &HeaderRule<S>, header: &str) -> String {
    format!("{} {}", header.to_ascii_lowercase(), rule.hosts_text())
}

impl Inner {
    /// The policy as it is kept. `owner`: whose it is (`None`: the installation's). Values that the request keeps come from `present`.
    pub(crate) fn seal_network(
        &self,
        owner: Option<TenantId>,
        request: &NetworkRequest,
        present: Option<&NetworkPolicy>,
    ) -> Result<Arc<NetworkPolicy>> {
        request.check().map_err(|error| Error::invalid(format!("network.{error}")))?;
        let sealed = request.map_headers(|index, rule, header, value| {
            let refused = |why: &str| Error::invalid(format!("network.headers[{index}].set.{header}: {why}"));
            match value {
                HeaderValue::Kept => {
                    kept(present, rule, header).ok_or_else(|| refused("there is no value to keep for these hosts: give one"))
                }
                HeaderValue::Set(secret) => {
                    check_value(secret).map_err(|why| refused(&why))?;
                    let name = purpose_name(rule, header);
                    let sealed = self.seal(&Purpose { kind: KIND, tenant: owner, name: &name }, secret.as_bytes())?;
                    Ok(HeaderSecret { owner, sealed })
                }
            }
        })?;
        Ok(Arc::new(sealed))
    }
}

fn kept(present: Option<&NetworkPolicy>, rule: &HeaderRule<HeaderValue>, header: &str) -> Option<HeaderSecret> {
    let same_hosts = present?.headers.iter().filter(|old| old.hosts == rule.hosts);
    let mut set = same_hosts.flat_map(|old| &old.set);
    set.find(|(name, _)| name.eq_ignore_ascii_case(header)).map(|(_, secret)| secret.clone())
}

/// What a header can carry (RFC 9110 §5.5): visible ASCII, with spaces and tabs inside.
fn check_value(value: &str) -> std::result::Result<(), String> {
    if !(1..=HEADER_VALUE_LEN_MAX).contains(&value.len()) {
        return Err(format!("the value has {} bytes: it must have 1 to {HEADER_VALUE_LEN_MAX}", value.len()));
    }
    let plain = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t');
    if !plain || value.trim() != value {
        return Err("the value must be printable ASCII without spaces at its ends".to_owned());
    }
    Ok(())
}

impl Control {
    /// The headers that a request to `host` and `path` (without its query) gets, name and value, for the host's own proxy: their
    /// values are readable and belong in no answer, log or error.
    ///
    /// An error means that a value does not open: the request must not go out without it.
    pub fn network_header_secrets(
        &self,
        network: &ActiveNetwork,
        host: &str,
        path: &str,
    ) -> Result<Vec<(String, Zeroizing<String>)>> {
        let open = |(index, header, secret): (usize, &str, &HeaderSecret)| {
            let unusable = |why: &dyn std::fmt::Display| {
                let message =
                    format!("the value of the header {header} for {host} cannot be used: it {why}; set the policy again");
                Error::new(ErrorKind::Unavailable, message)
            };
            let rule = network.policy().headers.get(index).ok_or_else(|| unusable(&"is of no rule"))?;
            if secret.owner.is_some_and(|owner| owner != network.tenant()) {
                return Err(unusable(&"belongs to somebody else"));
            }
            let name = purpose_name(rule, header);
            let purpose = Purpose { kind: KIND, tenant: secret.owner, name: &name };
            let opened = self.inner.sealer.open(&purpose, &secret.sealed).map_err(|why| unusable(&why))?;
            let value = std::str::from_utf8(&opened).map_err(|_| unusable(&"is no text"))?;
            Ok((header.to_owned(), Zeroizing::new(value.to_owned())))
        };
        network.headers_for(host, path).into_iter().map(open).collect()
    }
}
