//! What people do to pods with kubectl, and on the board itself.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tests::cluster::{Board, Cluster, on_a_cluster};

use super::{SOON, container, phase, pod, ready};

#[test]
fn kubectl_works_against_the_board() -> Result<()> {
    on_a_cluster(|cluster| {
        let board = cluster.joined("board", "")?;
        let core = &cluster.control_plane;
        let script = "mkdir /www; echo served > /www/index.html; httpd -p 8080 -h /www; i=0; \
                      while true; do i=$((i+1)); echo line $i; sleep 0.2; done";
        core.apply(&pod(&cluster.busybox, "web", script, "", ""))?;
        ready(core, "web")?;
        exec(cluster)?;
        logs(cluster)?;
        terminal(cluster)?;
        copy(cluster)?;
        forward(cluster)?;
        attach(cluster)?;
        run(cluster)?;
        debug(cluster)?;
        top(cluster)?;
        on_the_board(&board)?;
        drain(cluster)
    })
}

fn exec(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let output = core.kubectl(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(output.stdout == b"out\n" && output.stderr.starts_with(b"err\n"), "{output:?}");
    let mut child = core
        .program("kubectl")
        .args(["exec", "-i", "web", "--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let big = vec![7u8; 3 << 20];
    child.stdin.take().context("no input")?.write_all(&big)?;
    let output = child.wait_with_output()?;
    let sum = Command::new("sh").args(["-c", "head -c 3145728 /dev/zero | tr '\\0' '\\7' | sha256sum"]).output()?;
    ensure!(output.stdout == sum.stdout, "{output:?}");
    Ok(())
}

fn logs(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let last = core.k(&["logs", "web", "--tail=2", "--timestamps"])?;
    ensure!(last.lines().count() == 2 && last.contains("Z line "), "{last}");
    ensure!(core.k(&["logs", "web", "--limit-bytes=6"])? == "line 1");
    let mut child = core.program("kubectl").args(["logs", "-f", "web", "--tail=1"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let number = |line: Option<std::io::Result<String>>| -> Result<u64> {
        let line = line.context("the log ended")??;
        Ok(line.strip_prefix("line ").context("another line")?.parse()?)
    };
    let first = number(lines.next())?;
    for more in 1..5 {
        ensure!(number(lines.next())? == first + more, "a line is missing");
    }
    child.kill()?;
    child.wait()?;
    let missing = core.kubectl(&["logs", "web", "-c", "none"])?;
    ensure!(!missing.status.success());
    Ok(())
}

/// `exec -it` on a real terminal.
fn terminal(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let kubectl = core.program("kubectl");
    let command =
        format!("{} exec -it web -- sh -c 'test -t 0 && sleep 1; stty size; tty'", kubectl.get_program().display());
    let output = Command::new("script")
        .args(["-qec", &format!("stty rows 31 cols 99; {command}"), "/dev/null"])
        .env("KUBECONFIG", core.kubeconfig())
        .env("HOME", &cluster.dir)
        .stdin(Stdio::null())
        .output()
        .context("script(1) is missing")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("31 99") && text.contains("/dev/pts/"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn copy(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let (from, back) = (cluster.dir.join("copied"), cluster.dir.join("copied-back"));
    std::fs::write(&from, vec![42u8; 300_000])?;
    core.k(&["cp", &from.display().to_string(), "web:/tmp/there"])?;
    core.k(&["cp", "web:/tmp/there", &back.display().to_string()])?;
    ensure!(std::fs::read(&back)? == std::fs::read(&from)?, "the copy is another");
    Ok(())
}

fn forward(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let port = tests::free_port()?;
    let mut child = core
        .program("kubectl")
        .args(["port-forward", "pod/web", &format!("{port}:8080")])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    ensure!(lines.next().context("no line")??.contains("Forwarding"));
    for _ in 0..3 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("served\n"), "{answer}");
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn attach(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    core.apply(&pod(&cluster.busybox, "echoes", "cat", "restartPolicy: Never,", "stdin: true, stdinOnce: true"))?;
    phase(core, "echoes", "Running")?;
    let mut child = core
        .program("kubectl")
        .args(["attach", "-i", "echoes"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(b"through\n")?;
    let output = child.wait_with_output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("through"), "{output:?}");
    phase(core, "echoes", "Succeeded")?;
    Ok(())
}

fn run(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = format!("--image={}", cluster.busybox);
    let output = core.kubectl(&["run", "-i", "--rm", "--restart=Never", "once", &image, "--", "echo", "ran"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.contains("ran"), "{output:?}");
    Ok(())
}

fn debug(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = format!("--image={}", cluster.busybox);
    core.kubectl(&["debug", "web", &image, "-c", "look", "--target=main", "--", "sh", "-c", "ps; sleep 1000"])?;
    core.wait_for(&["pod", "web"], SOON, |pod| container(pod, "look")["state"]["running"].is_object())?;
    tests::wait_until("the debugger sees the other container's processes", SOON, || {
        core.k(&["logs", "web", "-c", "look"]).is_ok_and(|text| text.contains("httpd"))
    })
}

/// What `kubectl top` is made of is what the kernel counts.
fn top(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let text = core.k(&["get", "--raw", "/api/v1/nodes/board/proxy/metrics/resource"])?;
    let line = text
        .lines()
        .find(|line| line.starts_with("container_memory_working_set_bytes") && line.contains("pod=\"web\""))
        .context("no line for the pod")?;
    let told: f64 = line.rsplit(' ').nth(1).context("no value")?.parse()?;
    ensure!(told > 50_000.0 && told < 100e6, "{line}");
    let summary: serde_json::Value =
        serde_json::from_str(&core.k(&["get", "--raw", "/api/v1/nodes/board/proxy/stats/summary"])?)?;
    ensure!(summary["pods"].as_array().is_some_and(|pods| pods.iter().any(|pod| pod["podRef"]["name"] == "web")));
    Ok(())
}

fn on_the_board(board: &Board) -> Result<()> {
    let said = |args: &[&str]| -> Result<String> {
        let output = board.agent.command(args)?;
        ensure!(output.status.success(), "{args:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let listed = said(&["pod", "ls"])?;
    ensure!(listed.contains("web") && listed.contains("Running"), "{listed}");
    ensure!(said(&["pod", "logs", "web", "--tail", "1"])?.starts_with("line "));
    ensure!(said(&["pod", "exec", "web", "--", "echo", "here"])? == "here\n");
    ensure!(said(&["pod", "describe", "web"])?.contains("QoS Class:"));
    let output = board.agent.command(&["pod", "describe", "none"])?;
    ensure!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("no pod default/none"));
    Ok(())
}

fn drain(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    core.k(&["drain", "board", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"])?;
    ensure!(core.k(&["get", "pods", "-o", "name"])?.is_empty(), "pods are left");
    Ok(())
}
