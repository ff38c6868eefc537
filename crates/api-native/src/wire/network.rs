//! What a sandbox may reach, on the wire.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{ObjectBuilder, OneOfBuilder, Ref, RefOr, Type};

/// What a sandbox may reach. Of what is absent: all of the internet, no rules, no headers, no limits. The host's own networks (private,
/// link-local and reserved addresses) are closed in any case, unless the operator opened some.
///
/// A connection follows the first list that speaks of it: `allow`, then `deny`, then `internet`. Unknown fields are refused.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkPolicy {
    /// Whether what no rule speaks of may be reached. Default true.
    #[schema(example = false)]
    pub internet: Option<bool>,
    /// Allowed, whatever `deny` says. Both lists together hold at most 4096 entries.
    #[serde(default)]
    #[schema(max_items = 4096)]
    pub allow: Vec<NetworkRule>,
    /// Denied unless allowed.
    #[serde(default)]
    #[schema(max_items = 4096)]
    pub deny: Vec<NetworkRule>,
    /// Headers that are added to HTTP and HTTPS requests on their way out. Their values never enter the sandbox.
    #[serde(default)]
    #[schema(max_items = 10)]
    pub headers: Vec<HeaderRule>,
    /// How much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<NetworkLimits>,
}

/// How much of the network a sandbox may take. What is absent is unlimited.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkLimits {
    /// Bytes a second into the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1024)]
    pub in_bytes_per_second: Option<u64>,
    /// Bytes a second out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1024)]
    pub out_bytes_per_second: Option<u64>,
    /// Connections to the outside at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub connections: Option<u32>,
}

/// A rule with all its parts.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkRuleObject {
    /// An address, a range, a name, `*.name` (all names below it) or `*` (everything).
    #[schema(max_length = 300, example = "10.1.0.0/16")]
    pub to: String,
    /// What of it the rule is not about: names of a name, addresses of addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 4096)]
    pub except: Vec<String>,
    /// Ports and ranges of ports. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub ports: Vec<PortText>,
    /// By what. Absent: by anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportWord>,
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TransportWord {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A rule: a text (`packages.example.com:443`), or an object with its parts.
#[derive(Debug, Clone)]
pub(crate) enum NetworkRule {
    /// `target[:ports]`.
    Text(String),
    /// Its parts.
    Object(NetworkRuleObject),
}

impl Serialize for NetworkRule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => to.serialize_str(text),
            Self::Object(object) => object.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for NetworkRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NetworkRule;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rule: a text such as \"example.com:443\", or an object with to, ports, transport and except")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<NetworkRule, E> {
                Ok(NetworkRule::Text(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NetworkRule, A::Error> {
                NetworkRuleObject::deserialize(MapAccessDeserializer::new(map)).map(NetworkRule::Object)
            }
        }
        from.deserialize_any(Either)
    }
}

fn text_schema(description: &str, example: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).examples([example])
}

impl utoipa::PartialSchema for NetworkRule {
    fn schema() -> RefOr<Schema> {
        let text = "target[:ports]: 1.2.3.4, 10.0.0.0/8, [2001:db8::1]:443, example.com, *.example.com:80,8000-8100, udp://*:53";
        let text = text_schema(text, "packages.example.com:443").max_length(Some(1000));
        OneOfBuilder::new().item(text).item(Ref::from_schema_name("NetworkRuleObject")).into()
    }
}

impl ToSchema for NetworkRule {
    fn name() -> std::borrow::Cow<'static, str> {
        "NetworkRule".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("NetworkRuleObject".to_owned(), <NetworkRuleObject as utoipa::PartialSchema>::schema()));
        NetworkRuleObject::schemas(schemas);
    }
}

/// A port or a range of ports: 443, "443" or "8000-8100".
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct PortText(pub String);

impl<'de> Deserialize<'de> for PortText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = PortText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 443 or \"443\", or a range such as \"8000-8100\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<PortText, E> {
                Ok(PortText(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, port: u64) -> Result<PortText, E> {
                Ok(PortText(port.to_string()))
            }
        }
        from.deserialize_any(Either)
    }
}

impl utoipa::PartialSchema for PortText {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(65535));
        let text = text_schema("A port, or two with '-' between.", "8000-8100").max_length(Some(11));
        OneOfBuilder::new().item(number).item(text).into()
    }
}

impl ToSchema for PortText {
    fn name() -> std::borrow::Cow<'static, str> {
        "PortText".into()
    }
}

/// Headers for requests to some hosts. They open nothing: a host that may not be reached stays so.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderRule {
    /// Names, and `*.name` for all below one; each of at most 128 characters.
    #[schema(min_items = 1, max_items = 10)]
    pub hosts: Vec<String>,
    /// Only these paths: `/v1` is it and all below it, `/v1*` all that begins so. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub paths: Vec<String>,
    /// Header to value: 1 to 20, with names of at most 64 bytes. A request's own header of that name is replaced.
    pub set: BTreeMap<String, HeaderValue>,
}

/// A header's value. Written as a text of at most 2048 bytes; read as `{"isSet": true}`, which keeps it when it is written back.
#[derive(Clone)]
pub(crate) enum HeaderValue {
    /// This one.
    Text(String),
    /// One that is not shown.
    IsSet,
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "Text(..)",
            Self::IsSet => "IsSet",
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IsSet {
    is_set: bool,
}

impl Serialize for HeaderValue {
    /// Whatever it is, what goes out tells only that it is there.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        IsSet { is_set: true }.serialize(to)
    }
}

impl<'de> Deserialize<'de> for HeaderValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = HeaderValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a header's value: a text, or {\"isSet\": true} for the one that is set already")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<HeaderValue, E> {
                Ok(HeaderValue::Text(text.to_owned()))
            }
            // The usual error repeats what it found: it may be a secret that somebody forgot to quote.
            fn visit_i64<E: Error>(self, _: i64) -> Result<HeaderValue, E> {
                Err(E::custom("a header's value is a text: write it in quotes"))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<HeaderValue, E> {
                self.visit_i64(0)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<HeaderValue, E> {
                self.visit_i64(0)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HeaderValue, A::Error> {
                match IsSet::deserialize(MapAccessDeserializer::new(map))? {
                    IsSet { is_set: true } => Ok(HeaderValue::IsSet),
                    IsSet { is_set: false } => Err(A::Error::custom("isSet is false: leave the header out instead")),
                }
            }
        }
        from.deserialize_any(Either)
    }
}

impl utoipa::PartialSchema for HeaderValue {
    fn schema() -> RefOr<Schema> {
        let text = text_schema("The value. Never shown again.", "Bearer ...").write_only(true).max_length(Some(2048));
        let flag = ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true]));
        let set = ObjectBuilder::new().property("isSet", flag).required("isSet").description(Some("One that is set already."));
        OneOfBuilder::new().item(text).item(set).into()
    }
}

impl ToSchema for HeaderValue {
    fn name() -> std::borrow::Cow<'static, str> {
        "HeaderValue".into()
    }
}

/// What a sandbox may reach, and who said so.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NetworkEnvelope {
    /// The policy in force.
    pub network: NetworkPolicy,
    /// Who said so: `sandbox` (its holder), `template` (or its pool), `tenant` or `server` (their defaults), or `driver`, where
    /// sandboxes have no network.
    pub source: String,
}
