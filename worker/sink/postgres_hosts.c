/* postgres_hosts: a connect's list of hosts, begun further behind. See postgres_connection.h. */
#include <string.h>

#include "worker/sink/postgres_connection.h"

static void reverse(char *from, size_t n)
{
    for (size_t i = 0; i < n / 2; i++) {
        char kept = from[i];
        from[i] = from[n - 1 - i];
        from[n - 1 - i] = kept;
    }
}

void postgres_rotate(char *list)
{
    size_t n = strlen(list), first = strcspn(list, ",");
    if (first == n)
        return;
    reverse(list, n);
    reverse(list, n - first - 1);
    reverse(list + n - first, first);
}

static bool is_place(const PQconninfoOption *o)
{
    static const char *const places[] = {"host", "hostaddr", "port"};
    for (size_t i = 0; i < TR_COUNT(places); i++)
        if (strcmp(o->keyword, places[i]) == 0)
            return o->val != NULL;
    return false;
}

int postgres_hosts(const struct postgres *p)
{
    int most = 1;
    for (const PQconninfoOption *o = p->parsed; o && o->keyword; o++) {
        int n = 1;
        for (const char *at = is_place(o) ? o->val : ""; *at; at++)
            n += *at == ',';
        most = TR_MAX(most, n);
    }
    return most;
}

void postgres_next_host(struct postgres *p)
{
    for (PQconninfoOption *o = p->parsed; o && o->keyword; o++)
        if (is_place(o))
            postgres_rotate(o->val);
}
