/* faultproxy: a TCP proxy on loopback that hurts the links through it, as it is told.
 *
 *   faultproxy HOST PORT [SEED]     prints "port N", then obeys lines on standard input:
 *
 *   next DIR ACTION AFTER [ARG]     a rule for the next connection: in direction DIR (up: to the
 *                                   server, down) ACTION comes behind AFTER bytes
 *   all DIR ACTION AFTER [ARG]      for every connection, on those that stand counted from now
 *   mark DIR ACTION AFTER ARG TEXT  once, counted from the next TEXT that goes up on any connection
 *   clear                           no rules any more; what was swallowed stays lost
 *   drop                            resets every connection now
 *   refuse 0|1                      1: new connections are reset at once
 *   stats                           prints "stats connections=N fired=N up=BYTES down=BYTES"
 *
 * Actions: reset · close (a polite end) · swallow (half-open: this direction goes nowhere from
 * there on) · stall MS · flip (one bit of the next byte, from SEED) · latency MS (of every piece
 * from there on) · rate BYTES_PER_S · slice N (pieces of N bytes, a millisecond apart). Each
 * command but stats is answered with "ok". Ends with its standard input. One thread, poll. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINKS_MAX = 256, BUFFER = 65536, TEXT_MAX = 128 };
enum action { NONE, RESET, CLOSE, SWALLOW, STALL, FLIP, LATENCY, RATE, SLICE, ACTIONS };
static const char *const action_names[ACTIONS] = {"none", "reset",   "close", "swallow", "stall",
                                                  "flip", "latency", "rate",  "slice"};
enum { UP, DOWN };

struct rule {
    enum action action;
    int64_t after, arg;
};
struct flow {
    int from, to; /* sockets */
    unsigned char buffer[BUFFER];
    size_t have, sent;
    int64_t passed, hold_until_ms, latency_ms, rate, slice;
    bool ended, swallows;
    struct rule rule;
};
struct link {
    bool used;
    struct flow flow[2];
    size_t matched; /* bytes of mark_text that the last bytes going up were */
};

static struct link *links[LINKS_MAX];
static struct rule standing[2], next_rules[2], mark_rule;
static int mark_direction;
static char mark_text[TEXT_MAX];
static int64_t connections, fired, bytes[2];
static uint64_t seed;
static bool refusing;
static struct sockaddr_storage target;
static socklen_t target_size;

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void link_close(struct link *l, bool reset)
{
    for (int d = 0; d < 2; d++) {
        struct linger hard = {1, 0};
        if (reset)
            setsockopt(l->flow[d].from, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(l->flow[d].from);
    }
    l->used = false;
}

static void arm(struct flow *f, const struct rule *r, int64_t from)
{
    f->rule = *r;
    f->rule.after += from;
}

static void link_open(int client)
{
    int on = 1, server = socket(target.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t i = 0;
    while (i < LINKS_MAX && links[i] && links[i]->used)
        i++;
    if (i < LINKS_MAX && !links[i])
        links[i] = calloc(1, sizeof **links);
    if (refusing || server < 0 || i == LINKS_MAX || !links[i] ||
        connect(server, (struct sockaddr *)&target, target_size) != 0) {
        struct linger hard = {1, 0};
        setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(client);
        if (server >= 0)
            close(server);
        return;
    }
    struct link *l = links[i];
    memset(l, 0, sizeof *l);
    l->used = true;
    l->flow[UP].from = l->flow[DOWN].to = client;
    l->flow[DOWN].from = l->flow[UP].to = server;
    for (int d = 0; d < 2; d++) {
        fcntl(l->flow[d].from, F_SETFL, O_NONBLOCK);
        setsockopt(l->flow[d].from, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        arm(&l->flow[d], next_rules[d].action ? &next_rules[d] : &standing[d], 0);
        next_rules[d].action = NONE;
    }
    connections++;
}

/* The rule's byte has come. False: the link is gone. */
static bool fire(struct link *l, struct flow *f)
{
    struct rule r = f->rule;
    f->rule.action = NONE;
    fired++;
    switch (r.action) {
    case RESET:
    case CLOSE:
        link_close(l, r.action == RESET);
        return false;
    case SWALLOW:
        f->swallows = true;
        break;
    case STALL:
        f->hold_until_ms = now_ms() + r.arg;
        break;
    case FLIP:
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        f->buffer[f->sent] ^= (unsigned char)(1u << (seed >> 61));
        break;
    case LATENCY:
        f->latency_ms = r.arg;
        f->hold_until_ms = now_ms() + r.arg;
        break;
    case RATE:
        f->rate = r.arg;
        break;
    case SLICE:
        f->slice = r.arg;
        break;
    default:
        break;
    }
    return true;
}

/* A text that ends at the byte at buffer[i] arms the marked rule. */
static void look_for_mark(struct link *l)
{
    struct flow *up = &l->flow[UP];
    for (size_t i = 0; i < up->have && mark_rule.action; i++) {
        char c = (char)up->buffer[i];
        l->matched = c == mark_text[l->matched] ? l->matched + 1 : c == mark_text[0];
        if (mark_text[l->matched])
            continue;
        struct flow *f = &l->flow[mark_direction];
        arm(f, &mark_rule, f->passed + (mark_direction == UP ? (int64_t)i + 1 : 0));
        mark_rule.action = NONE;
        l->matched = 0;
    }
}

/* Sends what may go now. False: the link is gone. */
static bool forward(struct link *l, int d)
{
    struct flow *f = &l->flow[d];
    while (f->sent < f->have) {
        size_t n = f->have - f->sent;
        if (now_ms() < f->hold_until_ms)
            return true;
        if (f->rule.action && f->rule.after <= f->passed) {
            if (!fire(l, f))
                return false;
            continue;
        }
        if (f->rule.action && (int64_t)n > f->rule.after - f->passed)
            n = (size_t)(f->rule.after - f->passed);
        if (f->slice && n > (size_t)f->slice)
            n = (size_t)f->slice;
        if (f->rate && n > (size_t)f->rate / 20 + 1)
            n = (size_t)f->rate / 20 + 1;
        ssize_t done = f->swallows ? (ssize_t)n : send(f->to, f->buffer + f->sent, n, MSG_NOSIGNAL);
        if (done < 0 && errno == EAGAIN)
            return true;
        if (done < 0) {
            link_close(l, false);
            return false;
        }
        f->sent += (size_t)done;
        f->passed += done;
        bytes[d] += done;
        if (f->slice || f->rate)
            f->hold_until_ms = now_ms() + (f->rate ? done * 1000 / f->rate : 1);
    }
    f->have = f->sent = 0;
    if (f->ended && !f->swallows)
        shutdown(f->to, SHUT_WR);
    if (l->flow[UP].ended && l->flow[DOWN].ended && !l->flow[1 - d].have) {
        link_close(l, false);
        return false;
    }
    return true;
}

static bool take(struct link *l, int d)
{
    struct flow *f = &l->flow[d];
    ssize_t n = recv(f->from, f->buffer, BUFFER, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n < 0) { /* one side was reset: so is the other */
        link_close(l, true);
        return false;
    }
    f->ended = n == 0;
    f->have = (size_t)n;
    if (f->latency_ms)
        f->hold_until_ms = now_ms() + f->latency_ms;
    if (d == UP)
        look_for_mark(l);
    return true;
}

/* ---- commands ---- */

static bool read_rule(char **at, int *direction, struct rule *r)
{
    char way[8], action[16];
    int used = 0;
    long long after = 0, arg = 0;
    if (sscanf(*at, "%7s %15s %lld%n", way, action, &after, &used) < 3)
        return false;
    *at += used;
    if (sscanf(*at, " %lld%n", &arg, &used) == 1)
        *at += used;
    *direction = strcmp(way, "down") == 0;
    *r = (struct rule){NONE, after, arg};
    for (int a = 1; a < ACTIONS; a++)
        if (strcmp(action, action_names[a]) == 0)
            r->action = (enum action)a;
    return r->action != NONE;
}

static void clear(void)
{
    struct rule none = {NONE, 0, 0};
    standing[UP] = standing[DOWN] = next_rules[UP] = next_rules[DOWN] = mark_rule = none;
    for (size_t i = 0; i < LINKS_MAX && links[i]; i++)
        for (int d = 0; d < 2; d++) {
            struct flow *f = &links[i]->flow[d];
            f->rule = none;
            f->latency_ms = f->rate = f->slice = f->hold_until_ms = 0;
        }
}

static void obey_rule(const char *word, char *at)
{
    struct rule r;
    int d;
    if (!read_rule(&at, &d, &r)) {
        printf("cannot read: %s\n", word);
        return;
    }
    if (strcmp(word, "next") == 0) {
        next_rules[d] = r;
    } else if (strcmp(word, "all") == 0) {
        standing[d] = r;
        for (size_t i = 0; i < LINKS_MAX && links[i]; i++)
            if (links[i]->used)
                arm(&links[i]->flow[d], &r, links[i]->flow[d].passed);
    } else {
        mark_rule = r;
        mark_direction = d;
        snprintf(mark_text, sizeof mark_text, "%s", at + (*at == ' '));
        for (size_t i = 0; i < LINKS_MAX && links[i]; i++)
            links[i]->matched = 0;
    }
    printf("ok\n");
}

static void obey(char *line)
{
    char word[16] = "";
    int used = 0;
    sscanf(line, "%15s%n", word, &used);
    if (strcmp(word, "stats") == 0) {
        printf("stats connections=%lld fired=%lld up=%lld down=%lld\n", (long long)connections,
               (long long)fired, (long long)bytes[UP], (long long)bytes[DOWN]);
    } else if (strcmp(word, "next") == 0 || strcmp(word, "all") == 0 || strcmp(word, "mark") == 0) {
        obey_rule(word, line + used);
    } else if (strcmp(word, "drop") == 0 || strcmp(word, "clear") == 0 ||
               strcmp(word, "refuse") == 0) {
        for (size_t i = 0; word[0] == 'd' && i < LINKS_MAX && links[i]; i++)
            if (links[i]->used)
                link_close(links[i], true);
        if (word[0] == 'c')
            clear();
        if (word[0] == 'r')
            refusing = atoi(line + used) != 0;
        printf("ok\n");
    } else {
        printf("cannot read: %s\n", word);
    }
    fflush(stdout);
}

/* False at the end of standard input. */
static bool read_commands(void)
{
    static char line[1024];
    static size_t have;
    ssize_t n = read(STDIN_FILENO, line + have, sizeof line - 1 - have);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    have += (size_t)n;
    for (char *end; (end = memchr(line, '\n', have)) != NULL;) {
        size_t used = (size_t)(end - line) + 1;
        *end = '\0';
        obey(line);
        memmove(line, line + used, have -= used);
    }
    return have < sizeof line - 1;
}

/* ---- the loop ---- */

static void serve(struct link *l, const struct pollfd *p)
{
    for (int d = 0; d < 2 && l->used; d++) {
        struct flow *f = &l->flow[d];
        if (f->have == 0 && !f->ended && (p[d].revents & (POLLIN | POLLHUP | POLLERR)) &&
            !take(l, d))
            return;
        if ((f->have || f->ended) && !forward(l, d))
            return;
    }
}

static bool turn(int listener)
{
    static struct pollfd p[2 + 2 * LINKS_MAX];
    static struct link *of[LINKS_MAX];
    int timeout = -1;
    nfds_t n = 2;
    p[0] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
    p[1] = (struct pollfd){listener, POLLIN, 0};
    for (size_t i = 0; i < LINKS_MAX && links[i]; i++) {
        if (!links[i]->used)
            continue;
        of[(n - 2) / 2] = links[i];
        for (int d = 0; d < 2; d++) {
            const struct flow *f = &links[i]->flow[d];
            bool held = f->have && now_ms() < f->hold_until_ms;
            bool wants = f->have == 0 && !f->ended;
            p[n++] = (struct pollfd){wants              ? f->from
                                     : f->have && !held ? f->to
                                                        : -1,
                                     wants ? POLLIN : POLLOUT, 0};
            if (held)
                timeout = 1;
        }
    }
    if (poll(p, n, timeout) < 0)
        return errno == EINTR;
    for (nfds_t i = 2; i < n; i += 2)
        serve(of[(i - 2) / 2], p + i);
    if (p[1].revents) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0)
            link_open(client);
    }
    return p[0].revents == 0 || read_commands();
}

int main(int argc, char **argv)
{
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    if (argc < 3 || getaddrinfo(argv[1], argv[2], &hints, &found) != 0) {
        fprintf(stderr, "usage: faultproxy HOST PORT [SEED]\n");
        return 64;
    }
    memcpy(&target, found->ai_addr, found->ai_addrlen);
    target_size = found->ai_addrlen;
    freeaddrinfo(found);
    seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) != 0 ||
        listen(listener, 128) != 0 || getsockname(listener, (struct sockaddr *)&here, &size) != 0) {
        perror("faultproxy");
        return 70;
    }
    printf("port %d\n", ntohs(here.sin_port));
    fflush(stdout);
    while (turn(listener))
        ;
    return 0;
}
