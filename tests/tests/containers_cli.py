"""A terminal for one command: what a person types, and what they see. Prints a JSON object."""

import fcntl, json, os, pty, select, struct, sys, termios, time

argv = json.loads(os.environ["ARGV"])
steps = json.loads(os.environ["STEPS"])
pid, fd = pty.fork()
if pid == 0:
    os.execvp(argv[0], argv)


def size(rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


size(33, 101)
before = termios.tcgetattr(fd)
seen = b""
raw = False


def read(patience):
    global seen
    if not select.select([fd], [], [], patience)[0]:
        return True
    try:
        part = os.read(fd, 65536)
    except OSError:
        return False
    seen += part
    return bool(part)


def wait_for(text, patience=30):
    global seen
    end = time.time() + patience
    while text.encode() not in seen:
        if time.time() > end or not read(0.2):
            sys.exit(f"{text!r} did not come; there was {seen!r}")
    seen = seen.split(text.encode(), 1)[1]


for kind, value in steps:
    if kind == "expect":
        wait_for(value)
        raw = raw or not termios.tcgetattr(fd)[3] & termios.ECHO
    elif kind == "type":
        os.write(fd, value.encode())
    elif kind == "size":
        size(*value)
end = time.time() + 30
while time.time() < end and read(0.2):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
else:
    done, status = os.waitpid(pid, 0)
after = termios.tcgetattr(fd)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "raw": raw, "restored": before == after}))
