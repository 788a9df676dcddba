use super::*;
use crate::sys::ids::FsIds;

fn serve() -> (tempfile::TempDir, Arc<RuntimeDir>, Control) {
    let session = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::in_session(session.path(), &FsIds::current()).unwrap().unwrap();
    let runtime = Arc::new(runtime);
    let control = Control::bind(&runtime, "job.sock").unwrap();
    (session, runtime, control)
}

fn wait(control: &Control) -> ControlRequest {
    loop {
        let mut ready = [PollFd::new(control.wake_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut ready, PollTimeout::from(5000u16)).unwrap() > 0, "no request within 5 s");
        if let Some(request) = control.try_recv() {
            return request;
        }
    }
}

fn done(id: u64) -> Reply {
    Reply::Checkpoint(CheckpointDone { ok: true, id, kind: "full".into(), ..Default::default() })
}

fn raw(control: &Control, text: &[u8]) -> String {
    let mut stream = UnixStream::connect(control.socket_path()).unwrap();
    let _ = stream.write_all(text);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

#[test]
fn a_request_wakes_the_supervisor_and_its_answer_comes_back() {
    let (_session, _runtime, control) = serve();
    let path = control.socket_path();
    let client = std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: true }, None));
    let asked = wait(&control);
    assert_eq!(asked.kind, Request::Checkpoint { kill: true });
    asked.reply.send(done(17));
    assert_eq!(client.join().unwrap().unwrap(), done(17));
    assert!(control.try_recv().is_none());
}

#[test]
fn garbage_of_every_kind_gets_an_error_and_harms_nobody() {
    let (_session, _runtime, control) = serve();
    let long = vec![b'x'; 3 * LINE_LIMIT];
    let deep = [b"[".repeat(LINE_LIMIT - 2), b"\n".to_vec()].concat();
    for text in [
        b"".as_slice(),
        b"\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"{\"request\":\"dance\"}\n",
        b"no newline",
        &long,
        &deep,
    ] {
        let reply = raw(&control, text);
        assert!(reply.is_empty() || reply.starts_with("{\"error\":"), "{reply}");
    }
    assert!(control.try_recv().is_none());
    let path = control.socket_path();
    let client = std::thread::spawn(move || request(&path, &Request::Status, None));
    wait(&control).reply.send(Reply::Status(JobStatus { ok: true, pid: 7, ..Default::default() }));
    assert!(matches!(client.join().unwrap().unwrap(), Reply::Status(JobStatus { pid: 7, .. })));
}

#[test]
fn an_unanswered_request_and_an_error_reach_the_client() {
    let (_session, _runtime, control) = serve();
    for drop_it in [true, false] {
        let path = control.socket_path();
        let client = std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: false }, None));
        let asked = wait(&control);
        if drop_it {
            drop(asked);
        } else {
            asked.reply.send(error(&"\u{1}é".repeat(LINE_LIMIT)));
        }
        let refused = client.join().unwrap().unwrap_err();
        assert!(matches!(refused, ControlError::Refused(_)), "{refused}");
    }
}

#[test]
fn many_clients_at_once_and_clients_that_leave() {
    let (_session, _runtime, control) = serve();
    let path = control.socket_path();
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: false }, None))
        })
        .collect();
    let mut leaver = UnixStream::connect(&path).unwrap();
    leaver.write_all(b"{\"request\":\"checkpoint\"}\n").unwrap();
    drop(leaver);
    for id in 0..41 {
        wait(&control).reply.send(done(id));
    }
    assert!(clients.into_iter().all(|client| client.join().unwrap().is_ok()));
}

#[test]
fn a_silent_client_keeps_nobody_waiting() {
    let (_session, _runtime, control) = serve();
    let silent: Vec<_> = (0..10).map(|_| UnixStream::connect(control.socket_path()).unwrap()).collect();
    let path = control.socket_path();
    let client = std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: false }, None));
    wait(&control).reply.send(done(1));
    client.join().unwrap().unwrap();
    let begun = Instant::now();
    drop(control);
    assert!(begun.elapsed() < Duration::from_secs(1));
    drop(silent);
}

#[test]
fn another_user_is_not_heard() {
    if crate::skipped::without_root() {
        return;
    }
    let session = tempfile::tempdir().unwrap();
    let job_user = FsIds { uid: 4321, gid: 4321, groups: vec![] };
    std::os::unix::fs::chown(session.path(), Some(4321), None).unwrap();
    let runtime = Arc::new(RuntimeDir::in_session(session.path(), &job_user).unwrap().unwrap());
    let control = Control::bind(&runtime, "job.sock").unwrap();
    // Root is heard; the check of the peer itself is on its effective uid.
    let path = control.socket_path();
    let client = std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: false }, None));
    wait(&control).reply.send(done(1));
    client.join().unwrap().unwrap();
    // A third user, even when let through to the socket.
    for path in [session.path(), runtime.path(), &control.socket_path()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                  s.send(b'{\"request\":\"checkpoint\"}\\n'); print(s.recv(4096).decode())";
    let mut command = std::process::Command::new("python3");
    std::os::unix::process::CommandExt::uid(&mut command, 1234);
    let Ok(output) = command.args(["-c", script]).arg(control.socket_path()).output() else {
        return crate::skipped::because("there is no Python here");
    };
    if output.status.success() {
        assert!(String::from_utf8_lossy(&output.stdout).contains("another user's"));
    }
    assert!(control.try_recv().is_none());
}

#[test]
fn an_answer_given_right_before_the_end_still_arrives() {
    for _ in 0..50 {
        let (_session, _runtime, control) = serve();
        let path = control.socket_path();
        let client = std::thread::spawn(move || request(&path, &Request::Checkpoint { kill: true }, None));
        wait(&control).reply.send(done(2));
        drop(control);
        assert_eq!(client.join().unwrap().unwrap(), done(2));
    }
}

#[test]
fn the_socket_goes_when_the_supervisor_does() {
    let (_session, runtime, control) = serve();
    let path = control.socket_path();
    assert!(path.exists());
    let error = request(&path, &Request::Status, Some(1)).unwrap_err();
    assert!(matches!(error, ControlError::NotTheSupervisor { by, .. } if by == std::process::id() as i32));
    drop(control);
    assert!(!path.exists());
    let error = request(&path, &Request::Status, None).unwrap_err();
    assert!(matches!(error, ControlError::Connect { .. }));
    // One that was killed leaves its socket; the next takes its place.
    drop(UnixListener::bind(&path).unwrap());
    Control::bind(&runtime, "job.sock").unwrap();
}
