/* What `smoke` runs for another CPU. Without arguments it greets from a container; with one, it names what the kernel, or
 * the emulator in front of it, lacks for running containers. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static void needs(const char *what, long result) {
    if (result < 0)
        printf("%s (%s)\n", what, strerror(errno));
}

int main(int count, char **arguments) {
    (void)arguments;
    if (count > 1) {
        unsigned allow = 0x7fff0000; /* SECCOMP_RET_ALLOW */
        needs("seccomp", syscall(SYS_seccomp, 2 /* SECCOMP_GET_ACTION_AVAIL */, 0, &allow));
        needs("prctl(PR_SET_CHILD_SUBREAPER)", prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
        needs("openat2", syscall(437, -1, "", 0, 0) < 0 && errno != ENOSYS ? 0 : -1);
        fflush(stdout);
        long child = syscall(SYS_clone, SIGCHLD | CLONE_PARENT, 0, 0, 0, 0);
        if (child == 0)
            _exit(0);
        needs("clone(CLONE_PARENT)", child);
        return 0;
    }
    struct utsname name;
    uname(&name);
    printf("hello from %s, process %d\n", name.machine, (int)getpid());
    return 0;
}
