//! HTTP plumbing that every dialect uses and that knows none of them.
//!
//! What is parsed here comes from the network: everything is bounded, and every error names the field or the place, so that a
//! dialect can put it into its own envelope. Nothing here answers a request by itself except the port proxy's own failures.

mod body;
mod cookies;
mod credential;
mod duration;
mod gateway;
mod json;
mod proxy;
mod quantity;
mod query;
mod request_id;
mod stream;
mod time;
mod tokens;

pub use body::{BodyError, JSON_BODY_MAX, read_body};
pub use credential::{bearer, credential};
pub use duration::{InvalidDuration, format_go_duration, parse_go_duration};
pub use gateway::{
    Gateway, GatewaySettings, NamedPort, PORT_TOKEN_HEADER, PORT_TOKEN_NAME, Refused, by_host, forget_token_in_referer,
    port_token, query_inside,
};
pub use json::{InvalidJson, parse_json};
pub use proxy::{
    DialError, Ended, Hold, HostField, Link, PortKey, PortPool, PortTarget, ProxyFailure, ProxySettings, page as error_page,
    prefers_html, proxy,
};
pub use quantity::{InvalidQuantity, format_binary_bytes, format_millis, parse_quantity_bytes, parse_quantity_millis};
pub use query::{InvalidQuery, Query};
pub use request_id::{REQUEST_ID, request_id};
pub use stream::{LineSplitter, TextCarry, TextPiece, bytes_body, ndjson_body, ndjson_line};
pub use time::{InvalidTime, format_time, parse_time};
pub use tokens::TokenStore;
