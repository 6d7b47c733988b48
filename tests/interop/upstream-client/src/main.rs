//! Asks an overlayd through ZLayer's own `OverlaydClient`: requests in, answers out, one JSON document a line.
//!
//!     upstream-client SOCKET < requests
//!
//! Both directions pass through ZLayer's type definitions, so a request that they do not know, and an answer that
//! they cannot read, ends here. One connection carries all requests. A refusal is `{"refused": TEXT}`; anything
//! that breaks the connection is `{"broken": TEXT}`, and ends the program with exit code 1.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use zlayer_overlayd::protocol::OverlaydRequest;
use zlayer_overlayd::{OverlaydClient, OverlaydError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(socket) = std::env::args().nth(1) else {
        eprintln!("usage: upstream-client SOCKET < requests");
        return ExitCode::from(2);
    };
    let mut client = match OverlaydClient::connect_with_backoff(Path::new(&socket)).await {
        Ok(client) => client,
        Err(error) => return broken(&error.to_string()),
    };
    for line in io::stdin().lock().lines() {
        let line = line.expect("stdin is UTF-8");
        let request: OverlaydRequest = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => return broken(&format!("no request of ZLayer's: {line}: {error}")),
        };
        match client.call(request).await {
            Ok(answer) => say(&serde_json::to_value(&answer).expect("an answer can be written")),
            Err(OverlaydError::Overlay(message)) => say(&serde_json::json!({ "refused": message })),
            Err(error) => return broken(&error.to_string()),
        }
    }
    ExitCode::SUCCESS
}

fn say(value: &serde_json::Value) {
    println!("{value}");
    io::stdout().flush().expect("stdout is open");
}

fn broken(why: &str) -> ExitCode {
    say(&serde_json::json!({ "broken": why }));
    ExitCode::FAILURE
}
