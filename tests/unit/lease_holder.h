/* lease_holder: a process with a write lease on a file, as a file server has for its client. It
 * gives the lease up a moment after it is asked to. Includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_LEASE_HOLDER_H
#define TRANCHE_TESTS_LEASE_HOLDER_H

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Exits 0: it was asked, and gave the lease up; 1: nobody asked; 2: no lease to be had. */
static void lease_hold(const char *path, int ready)
{
    const struct timespec long_time = {.tv_sec = 60}, moment = {.tv_nsec = 50000000};
    sigset_t asked;
    sigemptyset(&asked);
    sigaddset(&asked, SIGIO);
    sigprocmask(SIG_BLOCK, &asked, NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char held = fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0;
    if (write(ready, &held, 1) != 1 || !held)
        _exit(2);
    int got = sigtimedwait(&asked, NULL, &long_time);
    nanosleep(&moment, NULL);
    close(fd);
    _exit(got == SIGIO ? 0 : 1);
}

/* Returns the holder, which lease_given_up ends; skips the test where the file system knows no
 * leases. Nobody may have the file open. */
static pid_t lease_take(const char *path)
{
    int ends[2];
    char held = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t holder = fork();
    assert_true(holder >= 0);
    if (holder == 0)
        lease_hold(path, ends[1]);
    assert_int_equal(read(ends[0], &held, 1), 1);
    close(ends[0]);
    close(ends[1]);
    if (!held) {
        waitpid(holder, NULL, 0);
        print_message("no lease on %s: skipped\n", path);
        skip();
    }
    return holder;
}

/* Ends the holder; true where it had been asked for its lease. */
static bool lease_given_up(pid_t holder)
{
    int status = 0;
    assert_int_equal(waitpid(holder, &status, 0), holder);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif
