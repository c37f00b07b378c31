/* redis_link: see redis_link.h. */
#include "worker/source/redis_link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/log.h"

/* Waits for `events`; E_RETRY past the deadline. */
static int wait_for(struct redis_link *l, short events, int64_t deadline_ns, struct err *err)
{
    for (;;) {
        int64_t left = deadline_ns - clock_mono_ns(l->clock);
        if (left <= 0)
            return err_typed(err, E_RETRY, "redis_timeout", "redis: no answer in time");
        struct pollfd p = {.fd = l->fd, .events = events};
        int rc = poll(&p, 1, (int)TR_MIN(left / 1000000 + 1, (int64_t)60000));
        if (rc > 0)
            return E_OK;
        if (rc < 0 && errno != EINTR)
            return err_errno(err, E_RETRY, "redis: poll");
    }
}

/* ---- names ---- */

struct lookup_request {
    struct gaicb request;
    struct addrinfo hints;
    char name[REDIS_NAME_MAX], port[8];
};

/* getaddrinfo has no deadline of its own; getaddrinfo_a has. A request that cannot be cancelled is
 * left to the resolver's thread, memory and all: some hundred bytes a stuck lookup. */
static int resolve(struct addrinfo **out, const struct redis_host *host, int64_t deadline_ns,
                   const struct clock *clock, struct err *err)
{
    struct lookup_request *q = mem_alloc(1, sizeof *q);
    if (!q)
        return err_set(err, E_RETRY, "redis: no memory to look up %s", host->name);
    snprintf(q->name, sizeof q->name, "%s", host->name);
    snprintf(q->port, sizeof q->port, "%d", host->port);
    q->hints = (struct addrinfo){.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    int rc = getaddrinfo(q->name, q->port, &q->hints, out);
    if (rc != EAI_NONAME) {
        mem_free(q);
        return rc == 0 ? E_OK
                       : err_set(err, E_RETRY, "redis: %s: %s", host->name, gai_strerror(rc));
    }
    q->hints.ai_flags = AI_ADDRCONFIG;
    q->request = (struct gaicb){.ar_name = q->name, .ar_service = q->port, .ar_request = &q->hints};
    struct gaicb *list[1] = {&q->request};
    rc = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
    while (rc == 0 && (rc = gai_error(&q->request)) == EAI_INPROGRESS) {
        int64_t left = deadline_ns - clock_mono_ns(clock);
        if (left <= 0) {
            if (gai_cancel(&q->request) == EAI_CANCELED)
                mem_free(q);
            return err_set(err, E_RETRY, "redis: %s: no answer from the resolver in time",
                           host->name);
        }
        struct timespec wait = {left / 1000000000, left % 1000000000};
        gai_suspend((const struct gaicb *const *)list, 1, &wait);
        rc = 0;
    }
    if (rc == 0)
        *out = q->request.ar_result;
    mem_free(q);
    return rc == 0 ? E_OK : err_set(err, E_RETRY, "redis: %s: %s", host->name, gai_strerror(rc));
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 ==
               127;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

static int connect_one(struct redis_link *l, const struct addrinfo *a,
                       const struct redis_host *host, int64_t deadline_ns, struct err *err)
{
    int one = 1, failure = 0;
    socklen_t len = sizeof failure;
    l->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0)
        return err_errno(err, E_RETRY, "redis: socket");
    setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(l->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    int rc = connect(l->fd, a->ai_addr, a->ai_addrlen);
    if (rc != 0 && errno == EINPROGRESS) {
        rc = wait_for(l, POLLOUT, deadline_ns, err);
        if (rc < 0)
            return rc;
        rc = getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &failure, &len);
        errno = failure;
    }
    if (rc != 0 || failure != 0)
        return err_errno(err, E_RETRY, "redis: cannot connect to %s:%d", host->name, host->port);
    return E_OK;
}

/* ---- TLS ---- */

static int tls_failed(struct err *err, int code, const struct redis_link *l, const char *what)
{
    char text[160] = "";
    unsigned long number = ERR_get_error();
    long verify = l->ssl ? SSL_get_verify_result(l->ssl) : X509_V_OK;
    if (number)
        ERR_error_string_n(number, text, sizeof text);
    ERR_clear_error();
    return err_typed(err, code, "redis_tls", "redis: %s: %s", what,
                     verify != X509_V_OK ? X509_verify_cert_error_string(verify)
                     : text[0]           ? text
                                         : "the peer hung up");
}

static int tls_context(struct redis_link *l, const struct redis_settings *s, struct err *err)
{
    ERR_clear_error();
    l->context = SSL_CTX_new(TLS_client_method());
    if (!l->context || SSL_CTX_set_min_proto_version(l->context, TLS1_2_VERSION) != 1)
        return tls_failed(err, E_RETRY, l, "TLS");
    SSL_CTX_set_verify(l->context, SSL_VERIFY_PEER, NULL);
    /* SSL_write after a partial write may come with the rest at another address. */
    SSL_CTX_set_mode(l->context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    int ok = s->ca_file[0] ? SSL_CTX_load_verify_locations(l->context, s->ca_file, NULL)
                           : SSL_CTX_set_default_verify_paths(l->context);
    if (ok != 1)
        return tls_failed(err, E_USAGE, l, s->ca_file[0] ? s->ca_file : "certificates");
    if (s->cert_file[0] &&
        (SSL_CTX_use_certificate_chain_file(l->context, s->cert_file) != 1 ||
         SSL_CTX_use_PrivateKey_file(l->context, s->key_file, SSL_FILETYPE_PEM) != 1))
        return tls_failed(err, E_USAGE, l, s->cert_file);
    return E_OK;
}

/* Waits for what the last SSL call wants; E_RETRY: it failed for good. */
static int tls_wait(struct redis_link *l, int result, const char *what, int64_t deadline_ns,
                    struct err *err)
{
    int why = SSL_get_error(l->ssl, result);
    if (why == SSL_ERROR_WANT_READ)
        return wait_for(l, POLLIN, deadline_ns, err);
    if (why == SSL_ERROR_WANT_WRITE)
        return wait_for(l, POLLOUT, deadline_ns, err);
    return tls_failed(err, E_RETRY, l, what);
}

static int tls_open(struct redis_link *l, const struct redis_settings *s,
                    const struct redis_host *host, int64_t deadline_ns, struct err *err)
{
    unsigned char address[16];
    int rc = tls_context(l, s, err);
    if (rc < 0)
        return rc;
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    l->ssl = SSL_new(l->context);
    bool numeric = inet_pton(AF_INET, host->name, address) == 1 ||
                   inet_pton(AF_INET6, host->name, address) == 1;
    if (!l->ssl || SSL_set_fd(l->ssl, l->fd) != 1)
        return tls_failed(err, E_RETRY, l, "TLS");
    if (numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(l->ssl), host->name) != 1
                : SSL_set1_host(l->ssl, host->name) != 1 ||
                      SSL_set_tlsext_host_name(l->ssl, host->name) != 1)
        return tls_failed(err, E_RETRY, l, host->name);
    int done;
    while ((done = SSL_connect(l->ssl)) != 1) {
        char what[REDIS_NAME_MAX + 40];
        snprintf(what, sizeof what, "TLS with %s:%d", host->name, host->port);
        rc = tls_wait(l, done, what, deadline_ns, err);
        if (rc < 0)
            return rc;
    }
    return E_OK;
}

/* ---- link ---- */

int redis_link_open(struct redis_link *l, const struct redis_settings *s,
                    const struct redis_host *host, int64_t deadline_ns, const struct clock *clock,
                    struct err *err)
{
    struct addrinfo *found = NULL;
    struct err each = {0};
    *l = (struct redis_link){.fd = -1, .clock = clock};
    int rc = resolve(&found, host, deadline_ns, clock, err);
    if (rc < 0)
        return rc;
    rc = err_set(&each, E_RETRY, "redis: %s has no address", host->name);
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        redis_link_close(l);
        each = (struct err){0};
        if (!s->tls && !s->allow_insecure && !is_loopback(a->ai_addr)) {
            rc = err_set(&each, E_USAGE,
                         "redis: plain text to %s, which is another machine: want rediss://, or "
                         "--allow-insecure",
                         host->name);
            continue;
        }
        rc = connect_one(l, a, host, deadline_ns, &each);
        if (rc == E_OK && s->tls)
            rc = tls_open(l, s, host, deadline_ns, &each);
        if (rc == E_OK)
            break;
    }
    freeaddrinfo(found);
    if (rc < 0) {
        redis_link_close(l);
        err_typed(err, rc, each.type, "%s", each.msg);
    }
    return rc;
}

void redis_link_close(struct redis_link *l)
{
    SSL_free(l->ssl);
    SSL_CTX_free(l->context);
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    l->ssl = NULL;
    l->context = NULL;
}

int redis_link_write(struct redis_link *l, const char *bytes, size_t n, int64_t deadline_ns,
                     struct err *err)
{
    while (n > 0) {
        int rc = E_OK;
        ssize_t put;
        if (l->ssl) {
            ERR_clear_error();
            put = SSL_write(l->ssl, bytes, (int)TR_MIN(n, (size_t)1 << 20));
            if (put <= 0)
                rc = tls_wait(l, (int)put, "TLS write", deadline_ns, err);
        } else {
            put = send(l->fd, bytes, n, MSG_NOSIGNAL);
            if (put < 0 && (errno == EAGAIN || errno == EINTR))
                rc = wait_for(l, POLLOUT, deadline_ns, err);
            else if (put < 0)
                rc = err_errno(err, E_RETRY, "redis: cannot send");
        }
        if (rc < 0)
            return rc;
        if (put > 0) {
            bytes += put;
            n -= (size_t)put;
        }
    }
    return E_OK;
}

int redis_link_read(struct redis_link *l, char *to, size_t cap, int64_t deadline_ns,
                    struct err *err)
{
    for (;;) {
        int rc = E_OK;
        ssize_t got;
        if (l->ssl) {
            ERR_clear_error();
            got = SSL_read(l->ssl, to, (int)TR_MIN(cap, (size_t)1 << 20));
            if (got <= 0)
                rc = tls_wait(l, (int)got, "TLS read", deadline_ns, err);
        } else {
            got = recv(l->fd, to, cap, 0);
            if (got == 0)
                rc = err_typed(err, E_RETRY, "redis_closed", "redis: the server hung up");
            else if (got < 0 && (errno == EAGAIN || errno == EINTR))
                rc = wait_for(l, POLLIN, deadline_ns, err);
            else if (got < 0)
                rc = err_errno(err, E_RETRY, "redis: cannot receive");
        }
        if (rc < 0)
            return rc;
        if (got > 0)
            return (int)got;
    }
}
