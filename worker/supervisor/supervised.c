/* supervised: the child's side of supervisor.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/sink/sink.h"
#include "worker/supervisor/supervisor.h"

static const int64_t PAUSE_NS = 200000000;

static const int fatal_signals[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
static struct sigaction old_actions[TR_COUNT(fatal_signals)];
static struct supervised *noted;

/* Notes signal and sender, then lets it do what it would have done. A fault comes again by itself;
 * one that was sent has to be sent again. */
static void on_fatal(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    bool sent = info->si_code <= 0;
    (void)context;
    atomic_store(&noted->fatal_sent, sent && info->si_pid != getpid());
    atomic_store(&noted->fatal, number);
    for (size_t i = 0; i < TR_COUNT(fatal_signals); i++)
        if (fatal_signals[i] == number)
            sigaction(number, &old_actions[i], NULL);
    if (sent)
        raise(number);
    errno = saved;
}

void supervised_nonce(struct supervised *self)
{
    uint8_t random[8];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        int64_t now = clock_wall_ns(clock_system()) ^ (int64_t)getpid() << 44;
        memcpy(random, &now, sizeof random);
    }
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(self->nonce + 2 * i, 3, "%02x", random[i]);
}

void supervised_begin(struct supervised *self, const char *name)
{
    struct sigaction action = {.sa_sigaction = on_fatal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    snprintf(self->process, sizeof self->process, "%.300s/%s", name, self->nonce);
    noted = self;
    for (size_t i = 0; i < TR_COUNT(fatal_signals); i++)
        sigaction(fatal_signals[i], &action, &old_actions[i]);
}

void supervised_end(void)
{
    for (size_t i = 0; noted && i < TR_COUNT(fatal_signals); i++)
        sigaction(fatal_signals[i], &old_actions[i], NULL);
    noted = NULL;
}

int deaths_record(struct supervised *self, struct sink *sink, int64_t timeout_ns, struct err *err)
{
    const struct clock *clock = clock_system();
    int64_t until = clock_mono_ns(clock) + timeout_ns;
    for (int i = 0; i < self->n_deaths; i++) {
        struct death d = {.process = str_of(self->deaths[i].process),
                          .cause = self->deaths[i].cause};
        struct err why = {0};
        int rc;
        while ((rc = sink->ops->record_death(sink, &d, &why)) == E_RETRY &&
               clock_mono_ns(clock) < until) {
            clock_sleep_ns(clock, PAUSE_NS);
            why = (struct err){0};
        }
        if (rc < 0)
            return err_typed(err, why.code, why.type, "death of %s: %s", self->deaths[i].process,
                             why.msg);
        atomic_store(&self->recorded, i + 1);
        LOG(LOG_INFO, "death_recorded", LOG_STR("process", d.process),
            LOG_S("cause", death_cause_name(d.cause)), LOG_I("jobs", d.jobs),
            LOG_I("charged", d.charged));
    }
    return E_OK;
}
