// Tells when it started: puts CLOCK_MONOTONIC in nanoseconds, as 15 hexadecimal digits, into its own name
// (/proc/PID/comm), where the host can read it without any log, mount or network. Then it waits for SIGTERM.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char name[16];
    snprintf(name, sizeof name, "%015llx", (unsigned long long)((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec));
    signal(SIGTERM, leave);
    prctl(PR_SET_NAME, name);
    for (;;) pause();
}
