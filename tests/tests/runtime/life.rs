//! From `create` to `delete`, executions, terminals, and what cannot be executed.

use std::{
    fs,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use container_engine::runtime::{Launch, RuntimeError, Status};
use serde_json::json;

use crate::bundle::{Bundle, is_unified, kinds, text};

#[test]
fn the_whole_life_of_a_container() {
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]);
        bundle.write();
        let (runtime, id, pid) = (bundle.runtime(), &bundle.id, bundle.folder.path().join("pid"));
        assert!(matches!(runtime.state(id), Err(RuntimeError::NoSuchContainer { .. })), "{}", kind.name);
        let created = runtime.create(id, bundle.folder.path(), Launch::new(&pid)).unwrap();
        assert!(
            matches!(runtime.create(id, bundle.folder.path(), Launch::new(&pid)), Err(RuntimeError::Exists { .. })),
            "{}",
            kind.name
        );
        let state = runtime.state(id).unwrap();
        assert_eq!((state.status, state.pid), (Status::Created, created));
        runtime.start(id).unwrap();
        assert!(matches!(runtime.start(id), Err(RuntimeError::WrongState { .. })), "{}", kind.name);
        runtime.pause(id).unwrap();
        assert_eq!(runtime.state(id).unwrap().status, Status::Paused);
        runtime.resume(id).unwrap();
        assert_eq!(runtime.state(id).unwrap().status, Status::Running);
        let resources =
            serde_json::from_value(json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 17}})).unwrap();
        runtime.update(id, &resources).unwrap();
        assert_eq!(bundle.kernel("pids.max").as_deref(), Some("17"), "{}", kind.name);
        assert!(runtime.delete(id, false).is_err(), "{}", kind.name);
        runtime.kill(id, 9, true).unwrap();
        tests::wait_until("the container ends", Duration::from_secs(10), || {
            runtime.state(id).is_ok_and(|state| state.status == Status::Stopped)
        })
        .unwrap();
        assert!(runtime.kill(id, 15, false).is_err(), "{}", kind.name);
        runtime.delete(id, false).unwrap();
        runtime.delete(id, true).unwrap();
        assert_eq!(bundle.cgroup(), Vec::<PathBuf>::new(), "{}", kind.name);
    }
}

#[test]
fn exec_in_all_its_forms() {
    for kind in kinds() {
        let bundle = Bundle::new(&kind, &["sleep", "60"]).started();
        let id = &bundle.id;
        assert_eq!(bundle.state(), "running");
        let output = bundle.exec(&[
            "--user",
            "1000:1000",
            "--cwd",
            "/tmp",
            "--env",
            "A=b",
            "--additional-gids",
            "7",
            id,
            "sh",
            "-c",
            "id -u; id -G; pwd; echo $A $HOME; hostname",
        ]);
        assert_eq!(text(&output), "1000\n1000 7\n/tmp\nb /home/user\nbox", "{}", kind.name);
        assert_eq!(bundle.exec(&[id, "sh", "-c", "exit 7"]).status.code(), Some(7), "{}", kind.name);
        assert_eq!(bundle.exec(&[id, "sh", "-c", "kill -9 $$"]).status.code(), Some(137), "{}", kind.name);
        let caps = bundle.exec(&["--cap", "CAP_SYS_ADMIN", id, "sh", "-c", "grep CapEff /proc/self/status"]);
        assert!(text(&caps).ends_with("200421"), "{}: {}", kind.name, text(&caps));
    }
}

/// On version 2 a group that hands controllers down holds no processes itself: a container that divides its own group
/// must still be one that commands can be run in, that can be paused, and that goes without a trace.
#[test]
fn a_container_divides_its_own_control_group() {
    if !is_unified() {
        return println!("version 1 has no such rule; passed over");
    }
    let script = "cd /sys/fs/cgroup; mkdir inner; while read pid; do echo $pid > inner/cgroup.procs; done < cgroup.procs; \
        echo +pids +memory > cgroup.subtree_control; echo 7 > inner/pids.max; exec sleep 60";
    for kind in kinds() {
        let mut bundle = Bundle::new(&kind, &["sh", "-c", script])
            .mount(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}))
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev"]}))
            .with("/linux/resources", json!({"pids": {"limit": 100}}));
        bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        let bundle = bundle.started();
        tests::wait_until("the container has divided its group", Duration::from_secs(30), || {
            bundle.kernel("inner/pids.max").as_deref() == Some("7")
        })
        .unwrap();
        let output = bundle.exec(&[&bundle.id, "cat", "/proc/self/cgroup"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), "0::/inner", "{}: {told}", kind.name);
        let runtime = bundle.runtime();
        runtime.pause(&bundle.id).unwrap();
        assert!(bundle.kernel("inner/cgroup.events").unwrap().contains("frozen 1"), "{}", kind.name);
        runtime.resume(&bundle.id).unwrap();
        runtime.kill(&bundle.id, 9, true).unwrap();
        tests::wait_until("the container ends", Duration::from_secs(30), || bundle.state() == "stopped").unwrap();
        runtime.delete(&bundle.id, false).unwrap();
        assert_eq!(bundle.cgroup(), Vec::<PathBuf>::new(), "{}", kind.name);
    }
}

/// `kill --all` reaches what a container without process ids of its own has left behind.
#[test]
fn all_processes_are_killed_not_the_first_alone() {
    for kind in kinds() {
        let namespaces = json!([{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
        let bundle = Bundle::new(&kind, &["sh", "-c", "sleep 300 & sleep 300 & exec sleep 300"])
            .with("/linux/namespaces", namespaces)
            .started();
        let count = || bundle.kernel("cgroup.procs").unwrap_or_default().lines().count();
        tests::wait_until("three processes run", Duration::from_secs(30), || count() == 3).unwrap();
        bundle.runtime().kill(&bundle.id, 9, true).unwrap();
        tests::wait_until("all have ended", Duration::from_secs(30), || count() == 0).unwrap();
        bundle.runtime().delete(&bundle.id, false).unwrap();
        assert_eq!(bundle.cgroup(), Vec::<PathBuf>::new(), "{}", kind.name);
    }
}

#[test]
fn what_cannot_be_executed() {
    for kind in kinds() {
        for (args, want) in [(["nope"], 127), (["/nope"], 127), (["/etc"], 126), (["/etc/passwd"], 126)] {
            let bundle = Bundle::new(&kind, &args);
            bundle.write();
            let pid = bundle.folder.path().join("pid");
            let error = bundle.runtime().create(&bundle.id, bundle.folder.path(), Launch::new(&pid)).unwrap_err();
            assert_eq!(error.exit_code(), want, "{} {args:?}: {error}", kind.name);
            assert_eq!(bundle.cgroup(), Vec::<PathBuf>::new(), "{}", kind.name);
            let running = Bundle::new(&kind, &["sleep", "60"]).started();
            let process = running.folder.path().join("process.json");
            let mut value = running.config["process"].clone();
            value["args"] = json!(args);
            fs::write(&process, value.to_string()).unwrap();
            let error = running.runtime().exec(&running.id, &process, Launch::new(&pid)).unwrap_err();
            assert_eq!(error.exit_code(), want, "exec {} {args:?}: {error}", kind.name);
        }
    }
    // An ELF file for another CPU: ours says so before the start.
    let kind = &kinds()[0];
    let bundle = Bundle::new(kind, &["/bin/foreign"]);
    let mut program = fs::read("/bin/busybox").unwrap();
    program[18] = 0xf7;
    fs::write(bundle.root().join("bin/foreign"), program).unwrap();
    fs::set_permissions(bundle.root().join("bin/foreign"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.write();
    let pid = bundle.folder.path().join("pid");
    let error = bundle.runtime().create(&bundle.id, bundle.folder.path(), Launch::new(&pid)).unwrap_err();
    assert!(matches!(error, RuntimeError::WrongArchitecture { .. }), "{error}");
}

/// Takes the terminal that a runtime sends, and returns what comes out of it.
fn read_console(listener: &UnixListener) -> std::io::Result<String> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (peer, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    recvmsg(&peer, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut terminal = fs::File::from(received.ok_or(std::io::ErrorKind::UnexpectedEof)?);
    let mut text = Vec::new();
    match terminal.read_to_end(&mut text) {
        // Nobody has the other side open any more.
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error()) => Err(error),
        _ => Ok(String::from_utf8_lossy(&text).replace('\r', "")),
    }
}

#[test]
fn terminals() {
    for kind in kinds() {
        let script = "stty size; stat -c %u $(tty); test -t 0 && test -t 1 && test -t 2 && echo tty; id -u";
        let bundle = Bundle::new(&kind, &["sh", "-c", script])
            .with("/process/terminal", json!(true))
            .with("/process/consoleSize", json!({"height": 33, "width": 77}))
            .with("/process/user/uid", json!(1000));
        bundle.write();
        let socket = bundle.folder.path().join("console");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = std::thread::spawn(move || read_console(&listener));
        let pid = bundle.folder.path().join("pid");
        let launch = Launch { console_socket: Some(&socket), ..Launch::new(&pid) };
        bundle.runtime().create(&bundle.id, bundle.folder.path(), launch).unwrap();
        bundle.runtime().start(&bundle.id).unwrap();
        assert_eq!(console.join().unwrap().unwrap(), "33 77\n1000\ntty\n1000\n", "{}", kind.name);
    }
}
