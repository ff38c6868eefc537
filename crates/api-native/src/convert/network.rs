//! What sandboxes may reach.

use sandbank_control::{HeaderValue, NetworkRequest, NetworkView};
use sandbank_model::{HeaderRule, InvalidRule, NetworkLimits, NetworkPolicy, NetworkRule, NetworkTarget, PortRange, Transport};

use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// Most entries of a list that are looked at; `control` says how many are accepted.
const LIST_MAX: usize = 8192;

/// A policy in a request. Errors name the entry: `network.allow[3]`.
pub(crate) fn network_model(policy: wire::NetworkPolicy) -> ApiResult<NetworkRequest> {
    let wire::NetworkPolicy { internet, allow, deny, headers, limits } = policy;
    let wire::NetworkLimits { in_bytes_per_second, out_bytes_per_second, connections } = limits.unwrap_or_default();
    Ok(NetworkRequest {
        internet: internet.unwrap_or(true),
        allow: rules("allow", allow)?,
        deny: rules("deny", deny)?,
        headers: headers.into_iter().enumerate().map(|(at, rule)| header_rule(at, rule)).collect::<ApiResult<_>>()?,
        limits: NetworkLimits { out_bytes_per_second, in_bytes_per_second, connections },
    })
}

fn rules(list: &str, given: Vec<wire::NetworkRule>) -> ApiResult<Vec<NetworkRule>> {
    if given.len() > LIST_MAX {
        let count = given.len();
        return Err(ApiError::bad_request(format!("network.{list} has {count} entries; at most 4096 are accepted in all")));
    }
    let refused = |at: usize, error: InvalidRule| ApiError::bad_request(format!("network.{list}[{at}]: {error}"));
    let rule = |(at, rule)| rule_model(rule).map_err(|error| refused(at, error));
    given.into_iter().enumerate().map(rule).collect()
}

fn rule_model(rule: wire::NetworkRule) -> Result<NetworkRule, InvalidRule> {
    let wire::NetworkRuleObject { to, except, ports, transport } = match rule {
        wire::NetworkRule::Text(text) => return text.parse(),
        wire::NetworkRule::Object(object) => object,
    };
    let to: NetworkTarget = to.parse()?;
    let except = except.iter().map(|target| target.parse()).collect::<Result<_, _>>()?;
    let ports: Vec<PortRange> = ports.iter().map(|wire::PortText(text)| text.parse()).collect::<Result<_, _>>()?;
    let transport = transport.map(|transport| match transport {
        wire::TransportWord::Tcp => Transport::Tcp,
        wire::TransportWord::Udp => Transport::Udp,
    });
    Ok(NetworkRule { except, transport, ..NetworkRule::to(to).on_ports(ports) })
}

fn header_rule(at: usize, rule: wire::HeaderRule) -> ApiResult<HeaderRule<HeaderValue>> {
    let wire::HeaderRule { hosts, paths, set } = rule;
    let host = |(index, host): (usize, String)| {
        host.parse().map_err(|error: InvalidRule| ApiError::bad_request(format!("network.headers[{at}].hosts[{index}]: {error}")))
    };
    let value = |value| match value {
        wire::HeaderValue::Text(text) => HeaderValue::set(text),
        wire::HeaderValue::IsSet => HeaderValue::Kept,
    };
    Ok(HeaderRule {
        hosts: hosts.into_iter().enumerate().map(host).collect::<ApiResult<_>>()?,
        paths,
        set: set.into_iter().map(|(name, given)| (name, value(given))).collect(),
    })
}

/// A policy as it is shown: all of it but headers' values.
pub(crate) fn network_wire(policy: &NetworkPolicy) -> wire::NetworkPolicy {
    let NetworkPolicy { internet, allow, deny, headers, limits } = policy;
    let NetworkLimits { out_bytes_per_second, in_bytes_per_second, connections } = *limits;
    let limits = wire::NetworkLimits { in_bytes_per_second, out_bytes_per_second, connections };
    wire::NetworkPolicy {
        internet: Some(*internet),
        allow: allow.iter().map(rule_wire).collect(),
        deny: deny.iter().map(rule_wire).collect(),
        headers: headers
            .iter()
            .map(|HeaderRule { hosts, paths, set }| wire::HeaderRule {
                hosts: hosts.iter().map(ToString::to_string).collect(),
                paths: paths.clone(),
                set: set.keys().map(|name| (name.clone(), wire::HeaderValue::IsSet)).collect(),
            })
            .collect(),
        limits: (policy.limits != NetworkLimits::default()).then_some(limits),
    }
}

/// A text where it says all.
fn rule_wire(rule: &NetworkRule) -> wire::NetworkRule {
    let NetworkRule { to, except, ports, transport } = rule;
    if except.is_empty() && transport.is_none() {
        return wire::NetworkRule::Text(rule.to_string());
    }
    wire::NetworkRule::Object(wire::NetworkRuleObject {
        to: to.to_string(),
        except: except.iter().map(ToString::to_string).collect(),
        ports: ports.iter().map(|range| wire::PortText(range.to_string())).collect(),
        transport: transport.map(|transport| match transport {
            Transport::Tcp => wire::TransportWord::Tcp,
            Transport::Udp => wire::TransportWord::Udp,
        }),
    })
}

/// What a sandbox may reach.
pub(crate) fn network_envelope(view: &NetworkView) -> wire::NetworkEnvelope {
    let NetworkView { policy, source } = view;
    wire::NetworkEnvelope { network: network_wire(policy), source: source.as_str().to_owned() }
}
