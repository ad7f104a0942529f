//! What a node shows of itself, to those for whom it is meant: Prometheus, its tools, Grafana's queries, and a
//! browser.

use crate::service::{BOTS, Node, get};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cubenet_tests::{eventually, have, unused_port};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A program that ends with its test.
struct Ended(Child);

impl Ended {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Ended(command.spawn().expect("it starts"))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn book(path: &str) -> PathBuf {
    let docs = [env!("CARGO_MANIFEST_DIR"), "../../docs", path];
    docs.iter().collect()
}

/// What stands behind the headers of an answer.
fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Whether promtool has nothing to say of a text.
fn check_with_promtool(metrics: &str) {
    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(["check", "metrics"]);
    let promtool = promtool.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(metrics.as_bytes()).unwrap();
    drop(stdin);
    let said = promtool.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
}

/// All expressions of the dashboard, with its variables filled in.
fn expressions() -> Vec<String> {
    let dashboard = std::fs::read_to_string(book("grafana/cubenet.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let expression = |target: &Value| {
        let expression = target["expr"].as_str().unwrap();
        let filled = expression.replace("$__rate_interval", "10s");
        filled.replace("$job", ".*").replace("$instance", ".*")
    };
    targets.map(expression).collect()
}

/// Prometheus, which looks at one address every second.
struct Prometheus {
    _process: Ended,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let scrape = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: lobby, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&config, scrape).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let process = Ended::start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path().display()))
                .arg(format!("--web.listen-address={address}")),
        );
        Prometheus {
            _process: process,
            address,
            _folder: folder,
        }
    }

    /// The values of an expression now; none if it does not answer.
    fn query(&self, expression: &str) -> Vec<f64> {
        let percent = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        let query: String = expression.bytes().map(percent).collect();
        let Ok(answer) = get(self.address, &format!("/api/v1/query?query={query}")) else {
            return Vec::new();
        };
        let Ok(answer) = serde_json::from_str::<Value>(body(&answer)) else {
            return Vec::new();
        };
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap();
        let value = |result: &Value| result["value"][1].as_str()?.parse().ok();
        results.iter().filter_map(value).collect()
    }
}

#[test]
#[ignore = "takes both processors"]
fn prometheus_reads_a_node_and_every_panel_of_the_dashboard_has_something_to_show() {
    let tools = ["prometheus", "promtool"];
    if !tools
        .iter()
        .all(|tool| have(tool, Command::new(tool).arg("--version")))
    {
        return;
    }
    let node = Node::in_memory();
    let bots = node.bots(15);
    let metrics = node.page("/metrics");
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    check_with_promtool(body(&metrics));
    let prometheus = Prometheus::start(node.metrics);
    eventually("it has read the node", || {
        prometheus.query("lobby_players") == [BOTS as f64]
    });
    assert_eq!(prometheus.query("up"), [1.0]);
    for expression in expressions() {
        eventually(&expression, || {
            let values = prometheus.query(&expression);
            !values.is_empty() && values.iter().all(|value| value.is_finite())
        });
    }
    let rate = "sum(rate(cubenet_listener_messages_received_total[5s]))";
    eventually("players say where they are", || {
        // Twenty times a second each, and what they say besides.
        let rate = prometheus.query(rate);
        rate.first().is_some_and(|rate| *rate > 10.0 * BOTS as f64)
    });
    crate::outcome(bots);
}

/// A browser without a window, by `WebDriver`.
struct Browser {
    _process: Ended,
    address: SocketAddr,
    session: String,
}

impl Browser {
    fn start() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let port = format!("--port={}", address.port());
        let process = Ended::start(Command::new("chromedriver").arg(port));
        eventually("it listens", || TcpStream::connect(address).is_ok());
        let mut browser = Browser {
            _process: process,
            address,
            session: String::new(),
        };
        // As root, a browser has no sandbox; it sees this page alone.
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,1000",
        ];
        let options = json!({ "args": flags });
        let wanted = json!({ "alwaysMatch": { "goog:chromeOptions": options } });
        let session = browser.post("", &json!({ "capabilities": wanted }));
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    fn request(&self, method: &str, path: &str, content: &str) -> Value {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let timeout = Some(Duration::from_secs(60));
        stream.set_read_timeout(timeout).unwrap();
        let (path, len) = (format!("/session{}{path}", self.session), content.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\nConnection: close\r\n\r\n{content}"
        )
        .unwrap();
        let mut answer = Vec::new();
        // It may keep the connection: then the length says where the answer ends.
        let mut some = [0; 65_536];
        let whole = |answer: &[u8]| {
            let text = String::from_utf8_lossy(answer);
            serde_json::from_str::<Value>(body(&text)).ok()
        };
        loop {
            let len = stream.read(&mut some).unwrap();
            answer.extend_from_slice(&some[..len]);
            if let Some(answer) = whole(&answer) {
                let value = answer["value"].clone();
                assert!(value.get("error").is_none(), "{value}");
                return value;
            }
            assert!(len > 0, "{}", String::from_utf8_lossy(&answer));
        }
    }

    fn post(&self, path: &str, content: &Value) -> Value {
        self.request("POST", path, &content.to_string())
    }

    /// What a script returns in the page.
    fn run(&self, script: &str) -> Value {
        let content = json!({ "script": script, "args": [] });
        self.post("/execute/sync", &content)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Otherwise the browser itself would go on. If that fails, what failed before is more to the point.
        let _ = TcpStream::connect(self.address).and_then(|mut stream| {
            let path = format!("/session{}", self.session);
            write!(stream, "DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.read(&mut [0; 100])
        });
    }
}

#[test]
#[ignore = "takes both processors"]
fn a_browser_shows_charts_that_live() {
    let has_it = |tool: &str| have(tool, Command::new(tool).arg("--version"));
    if !has_it("chromium") || !has_it("chromedriver") {
        return;
    }
    let node = Node::in_memory();
    let bots = node.bots(20);
    let browser = Browser::start();
    let page = format!("http://{}/", node.metrics);
    browser.post("/url", &json!({ "url": page }));
    // Long enough for curves that can be seen.
    sleep(Duration::from_secs(12));
    let state = browser.run("return document.getElementById('state').textContent");
    assert_eq!(state, format!("{BOTS} players in 10 rooms"));
    let shown = |title: &str| {
        let script =
            format!("return document.querySelector('output[title=\"{title}\"]').textContent");
        browser.run(&script).as_str().unwrap().to_owned()
    };
    assert_eq!(shown("Players: players"), BOTS.to_string());
    assert_eq!(shown("Connections: open"), (2 * BOTS).to_string());
    let rate = shown("Messages each second: received");
    let rate: f64 = rate.trim_end_matches(" k").parse().unwrap();
    assert!(rate > 0.0, "messages come");
    assert!(shown("A tick takes at most: half of them").ends_with('s'));
    // Every curve has several points, and nothing went wrong.
    let curves = "return [...document.querySelectorAll('path.curve')]\
                  .map(path => path.getAttribute('d').split('L').length)";
    let curves = browser.run(curves);
    let curves: Vec<u64> = serde_json::from_value(curves).unwrap();
    assert!(
        curves.len() >= 15 && curves.iter().all(|points| *points > 5),
        "{curves:?}"
    );
    let screenshot = browser.request("GET", "/screenshot", "");
    let screenshot = STANDARD.decode(screenshot.as_str().unwrap()).unwrap();
    assert!(screenshot.len() > 10_000);
    if std::env::var_os("CUBENET_WRITE_DOCS").is_some() {
        std::fs::write(book("src/lobby.png"), &screenshot).unwrap();
    }
    // The node ends, and the page says so.
    crate::outcome(bots);
    drop(node);
    eventually("the page says that the node is away", || {
        let state = browser.run("return document.getElementById('state').textContent");
        state == "the node does not answer"
    });
}
