/* http: see http.h. libmicrohttpd speaks the protocol; its loop runs on our thread, which also ends
 * connections that live too long: the library's own timeout knows silence only. */
#include "worker/monitor/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/monitor/health.h"
#include "worker/monitor/http_page.h"
#include "worker/monitor/metrics.h"

enum { SILENCE_S = 5, POOL_BYTES = 4096, ROUND_MS = 100, BACKLOG = 16 };
static const int64_t LIFE_NS = 10000000000, TURN_NS = 1000000000;

struct http {
    struct MHD_Daemon *daemon;
    pthread_t thread;
    atomic_bool stop;
    struct {
        int fd; /* -1: free */
        int64_t since_ns;
    } connections[HTTP_CONNECTIONS];
    struct text text;
    struct page_rates rates;
};

/* ---- address ---- */

static int split(const char *address, char *host, size_t cap, const char **port, struct err *err)
{
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (!colon || n == 0 || !colon[1] || n >= cap)
        return err_set(err, E_USAGE, "--http: want HOST:PORT, found \"%.120s\"", address);
    if (address[0] == '[' && address[n - 1] == ']') {
        address++;
        n -= 2;
    } else if (memchr(address, ':', n)) {
        return err_set(err, E_USAGE,
                       "--http: want [HOST]:PORT around an IPv6 address, found \"%s\"", address);
    }
    memcpy(host, address, n);
    host[n] = 0;
    *port = colon + 1;
    /* getaddrinfo would take 99999 modulo 65536. */
    if (strspn(*port, "0123456789") != strlen(*port) || strlen(*port) > 5 || atoi(*port) > 65535)
        return err_set(err, E_USAGE, "--http: want a port of 0 to 65535, found \"%.120s\"", *port);
    return E_OK;
}

/* [::] means every address of this machine: where its kernel has no IPv6 those are 0.0.0.0. */
static const char *every_address(const char *host)
{
    struct in6_addr six;
    if (inet_pton(AF_INET6, host, &six) != 1 || !IN6_IS_ADDR_UNSPECIFIED(&six))
        return host;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool none = fd < 0 && errno == EAFNOSUPPORT;
    if (fd >= 0)
        close(fd);
    if (!none)
        return host;
    LOG(LOG_INFO, "http_without_ipv6", LOG_S("wanted", host), LOG_S("taken", "0.0.0.0"));
    return "0.0.0.0";
}

/* IPv6 alone would be net.ipv6.bindv6only's meaning of [::]. */
static bool takes_ipv4_too(int fd, int family)
{
    int off = 0;
    return family != AF_INET6 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
}

static int bind_one(const struct addrinfo *a, const char *address, struct err *err)
{
    int on = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, E_USAGE, "--http %s: no socket", address);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        takes_ipv4_too(fd, a->ai_family) && bind(fd, a->ai_addr, a->ai_addrlen) == 0 &&
        listen(fd, BACKLOG) == 0)
        return fd;
    int rc = err_errno(err, E_USAGE, "--http %s: cannot listen there", address);
    close(fd);
    return rc;
}

static void log_address(int fd)
{
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    char host[64] = "", port[8] = "";
    if (getsockname(fd, (struct sockaddr *)&at, &len) == 0)
        getnameinfo((struct sockaddr *)&at, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    LOG(LOG_INFO, "http_listening", LOG_S("host", host), LOG_S("port", port));
}

int http_listen(int *fd, const char *address, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char host[256];
    const char *port = NULL;
    int rc = split(address, host, sizeof host, &port, err);
    if (rc < 0)
        return rc;
    int code = getaddrinfo(every_address(host), port, &hints, &found);
    if (code != 0)
        return err_set(err, E_USAGE, "--http %.120s: %s", address, gai_strerror(code));
    rc = bind_one(found, address, err);
    freeaddrinfo(found);
    if (rc < 0)
        return rc;
    *fd = rc;
    log_address(rc);
    return E_OK;
}

/* ---- answers ---- */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              const struct text *body)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body->len, body->ptr, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "Connection", "close");
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
                            "form-action 'none'; frame-ancestors 'none'");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, "Allow", "GET");
    enum MHD_Result rc = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return rc;
}

static bool too_large(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return !size || size->header_size > HTTP_REQUEST_BYTES;
}

static enum MHD_Result serve(void *ctx, struct MHD_Connection *c, const char *url,
                             const char *method, const char *version, const char *upload,
                             size_t *upload_size, void **request)
{
    static const char plain[] = "text/plain; charset=utf-8";
    struct http *h = ctx;
    struct text *out = &h->text;
    const char *type = plain;
    unsigned status = MHD_HTTP_OK;
    int64_t now = clock_mono_ns(clock_system());
    (void)version, (void)upload, (void)upload_size, (void)request;
    text_reset(out);
    if (strcmp(method, "GET") != 0) {
        status = MHD_HTTP_METHOD_NOT_ALLOWED;
        text_f(out, "GET only\n");
    } else if (too_large(c)) {
        status = MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE;
        text_f(out, "a request has at most %d bytes\n", HTTP_REQUEST_BYTES);
    } else if (strcmp(url, "/healthz") == 0) {
        status = health_alive(now, out) ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    } else if (strcmp(url, "/readyz") == 0) {
        status = health_ready(out) ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    } else if (strcmp(url, "/metrics") == 0) {
        type = "text/plain; version=0.0.4; charset=utf-8";
        metrics_render(out);
    } else if (strcmp(url, "/") == 0) {
        type = "text/html; charset=utf-8";
        page_render(out, &h->rates, now, clock_wall_ns(clock_system()));
    } else {
        status = MHD_HTTP_NOT_FOUND;
        text_f(out, "/, /healthz, /readyz, /metrics\n");
    }
    if (status == MHD_HTTP_OK && out->len == 0)
        text_f(out, "ok\n");
    return out->failed ? MHD_NO : answer(c, status, type, out);
}

/* ---- connections ---- */

static void note_connection(void *ctx, struct MHD_Connection *c, void **own,
                            enum MHD_ConnectionNotificationCode what)
{
    struct http *h = ctx;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    bool starts = what == MHD_CONNECTION_NOTIFY_STARTED;
    (void)own;
    for (size_t i = 0; info && i < HTTP_CONNECTIONS; i++)
        if (h->connections[i].fd == (starts ? -1 : info->connect_fd)) {
            h->connections[i].fd = starts ? info->connect_fd : -1;
            h->connections[i].since_ns = clock_mono_ns(clock_system());
            return;
        }
}

/* Ends what is too old. The library sees the end at its next round and closes the socket. */
static void sweep(struct http *h)
{
    int64_t now = clock_mono_ns(clock_system());
    int used = 0, oldest = 0;
    for (int i = 0; i < HTTP_CONNECTIONS; i++) {
        if (h->connections[i].fd < 0)
            continue;
        used++;
        if (h->connections[oldest].fd < 0 ||
            h->connections[i].since_ns < h->connections[oldest].since_ns)
            oldest = i;
        if (now - h->connections[i].since_ns > LIFE_NS)
            shutdown(h->connections[i].fd, SHUT_RDWR);
    }
    if (used == HTTP_CONNECTIONS && now - h->connections[oldest].since_ns > TURN_NS)
        shutdown(h->connections[oldest].fd, SHUT_RDWR);
}

static void *http_main(void *arg)
{
    struct http *h = arg;
    while (!atomic_load(&h->stop)) {
        if (MHD_run_wait(h->daemon, ROUND_MS) != MHD_YES)
            clock_sleep_ns(clock_system(), (int64_t)ROUND_MS * 1000000);
        sweep(h);
        page_sample(&h->rates, clock_mono_ns(clock_system()));
    }
    return NULL;
}

static void quiet(void *ctx, const char *format, va_list args)
{
    (void)ctx, (void)format, (void)args; /* what a client does wrong is no event of ours */
}

int http_open(struct http **out, int fd, struct err *err)
{
    struct http *h = mem_alloc(1, sizeof *h);
    if (!h) {
        close(fd);
        return err_set(err, E_FATAL, "http: no memory");
    }
    for (size_t i = 0; i < HTTP_CONNECTIONS; i++)
        h->connections[i].fd = -1;
    h->daemon = MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL, serve, h,
                                 MHD_OPTION_EXTERNAL_LOGGER, quiet, NULL, MHD_OPTION_LISTEN_SOCKET,
                                 fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SILENCE_S,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
                                 MHD_OPTION_NOTIFY_CONNECTION, note_connection, h, MHD_OPTION_END);
    if (!h->daemon) {
        close(fd);
        mem_free(h);
        return err_set(err, E_FATAL, "http: libmicrohttpd does not start");
    }
    if (pthread_create(&h->thread, NULL, http_main, h) != 0) {
        MHD_stop_daemon(h->daemon);
        mem_free(h);
        return err_set(err, E_FATAL, "http: cannot start its thread");
    }
    *out = h;
    return E_OK;
}

void http_close(struct http *h)
{
    if (!h)
        return;
    atomic_store(&h->stop, true);
    pthread_join(h->thread, NULL);
    MHD_stop_daemon(h->daemon);
    text_close(&h->text);
    mem_free(h);
}
