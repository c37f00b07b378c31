/* postgres_place: which server libpq would go to, and whether that is this machine. Beside the URL
 * the environment (PGHOST, PGHOSTADDR) and a service file name one. See postgres_connection.h. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "worker/sink/postgres_connection.h"

/* A value that libpq refuses behind all that it reads and before all that it asks: there is no way
 * but a connection to learn what it has read. */
static const char REFUSED[] = "tranche";

static PQconninfoOption *option(PQconninfoOption *all, const char *name)
{
    for (PQconninfoOption *o = all; o && o->keyword; o++)
        if (strcmp(o->keyword, name) == 0)
            return o;
    return NULL;
}

static bool is_set(const PQconninfoOption *o)
{
    return o && o->val && *o->val;
}

/* Whether *into had no value and has now that of *from, which has none then. */
static bool take(PQconninfoOption *into, PQconninfoOption *from)
{
    if (!into || is_set(into) || !is_set(from))
        return false;
    PQfreemem(into->val);
    into->val = from->val;
    from->val = NULL;
    return true;
}

int postgres_place(struct postgres *p, const char *url, struct err *err)
{
    static const char *const keys[] = {"dbname", "target_session_attrs", "password", NULL};
    const char *values[] = {url, REFUSED, "none", NULL}; /* "none": .pgpass is left alone */
    PGconn *conn = PQconnectStartParams(keys, values, 1);
    PQconninfoOption *all = conn ? PQconninfo(conn) : NULL;
    const PQconninfoOption *mark = option(all, "target_session_attrs");
    int rc = E_OK;
    if (!all) {
        rc = err_set(err, E_FATAL, "database: no memory for a connection");
    } else if (!is_set(mark) || strcmp(mark->val, REFUSED) != 0) { /* it did not read so far */
        const char *text = PQerrorMessage(conn);
        rc = err_set(err, E_USAGE, "database: %.*s", (int)strcspn(text, "\n"), text);
    } else {
        PQconninfoOption *port = option(all, "port");
        bool host = take(option(p->parsed, "host"), option(all, "host"));
        bool address = take(option(p->parsed, "hostaddr"), option(all, "hostaddr"));
        if (host || address || (is_set(port) && strchr(port->val, ',')))
            take(option(p->parsed, "port"), port);
    }
    PQconninfoFree(all);
    PQfinish(conn);
    return rc;
}

/* The next of a comma-separated list; without an end it is empty. */
static struct str next_of(const char **list)
{
    struct str one = {*list, strcspn(*list, ",")};
    *list += one.len + ((*list)[one.len] == ',');
    return one;
}

/* "": libpq's default, a socket or localhost. */
static bool is_here(struct str host)
{
    char text[INET6_ADDRSTRLEN];
    struct in_addr four;
    struct in6_addr six;
    if (host.len == 0 || *host.ptr == '/' || *host.ptr == '@' || str_eq(host, STR("localhost")))
        return true;
    if (host.len >= sizeof text)
        return false;
    memcpy(text, host.ptr, host.len);
    text[host.len] = '\0';
    if (inet_pton(AF_INET, text, &four) == 1)
        return ntohl(four.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, text, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

bool postgres_is_here(const char *hosts, const char *addresses)
{
    const char *host_list = hosts ? hosts : "", *address_list = addresses ? addresses : "";
    do {
        struct str host = next_of(&host_list), address = next_of(&address_list);
        if (!is_here(address.len ? address : host))
            return false;
    } while (*host_list || *address_list);
    return true;
}
