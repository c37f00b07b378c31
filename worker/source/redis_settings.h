/* redis_settings: what a Redis URL and its config file say. Pure parsers over (bytes, length),
 * fuzzed; they open no connection and read no secret.
 *
 * URLs: redis://HOST[:PORT]/STREAM, rediss:// for TLS, and redis-sentinel://HOST[:PORT][,HOST...]
 * where the hosts are sentinels that know the master. IPv6 addresses stand in brackets.
 * The config file holds `name = value` lines; # starts a comment line. */
#ifndef TRANCHE_WORKER_SOURCE_REDIS_SETTINGS_H
#define TRANCHE_WORKER_SOURCE_REDIS_SETTINGS_H

#include "engine/base.h"

enum { REDIS_HOSTS_MAX = 8, REDIS_NAME_MAX = 256, REDIS_PATH_MAX = 1024 };

struct redis_host {
    char name[REDIS_NAME_MAX];
    int port;
};
struct redis_settings {
    bool tls, sentinel;
    bool allow_insecure; /* the caller's: plain text to a host that is not this machine */
    struct redis_host hosts[REDIS_HOSTS_MAX];
    int n_hosts;
    char master[REDIS_NAME_MAX];                 /* sentinel.master */
    char user[REDIS_NAME_MAX];                   /* username: ACL user; "": default */
    char password_file[REDIS_PATH_MAX];          /* password.file */
    char sentinel_password_file[REDIS_PATH_MAX]; /* sentinel.password.file */
    char ca_file[REDIS_PATH_MAX];                /* tls.ca.file; "": the system's */
    char cert_file[REDIS_PATH_MAX]; /* tls.cert.file, tls.key.file: our own certificate */
    char key_file[REDIS_PATH_MAX];
    int64_t lease_ns;     /* lease: an entry of a worker that is silent for so long is taken over */
    int64_t trim_keep_ns; /* trim.keep: acknowledged entries stay for so long; < 0: for ever */
};
void redis_settings_init(struct redis_settings *s); /* lease 120 s, trim.keep 1 h */

/* Takes scheme and hosts of a URL. E_USAGE naming what is wrong with which host. */
int redis_settings_url(struct redis_settings *s, struct str scheme, struct str hosts,
                       struct err *err) TR_MUSTCHECK;
/* "host", "host:6379", "[::1]:6379" */
int redis_host_parse(struct redis_host *out, struct str text, int default_port,
                     struct err *err) TR_MUSTCHECK;
/* Takes a config file's text. E_USAGE naming path:line, the nearest known name, the range. */
int redis_settings_parse(struct redis_settings *s, struct str text, const char *path,
                         struct err *err) TR_MUSTCHECK;
/* What only holds for all of it together; call it last. */
int redis_settings_check(const struct redis_settings *s, struct err *err) TR_MUSTCHECK;

#endif
