/* console: see console.h. */
#include "worker/commands/console.h"

#include "worker/commands/commands.h"

enum { CELL_MAX = 256 };

int console_db(struct query **out, const struct config *config, enum query_access access,
               struct err *err)
{
    struct postgres_opts o;
    postgres_opts_from_config(&o, config);
    return query_open(out, &o, access, err);
}

void console_queue(struct source_opts *o, const struct config *config)
{
    *o = (struct source_opts){.url = config_text(config, "source"),
                              .broker_config = config_text(config, "broker-config"),
                              .allow_insecure = config_flag(config, "allow-insecure"),
                              .connect_timeout_ns = config_int(config, "connect-timeout"),
                              .partition = -1};
}

struct str console_run(const struct config *config)
{
    return config_origin(config, "run") == CONFIG_DEFAULT ? (struct str){NULL, 0}
                                                          : str_of(config_text(config, "run"));
}

void console_cell(FILE *out, const char *text, int width)
{
    char cell[CELL_MAX * 4 + 8];
    int chars = 0;
    size_t n = 0, cut = 0;
    for (const char *p = text ? text : ""; *p && n + 8 < sizeof cell; p++) {
        unsigned char c = (unsigned char)*p;
        bool starts = (c & 0xC0) != 0x80;
        if (starts && chars == width) {
            n = cut;
            memcpy(cell + n, "...", 3);
            n += 3;
            break;
        }
        if (starts && chars == TR_MAX(width - 3, 0))
            cut = n;
        chars += starts;
        /* C0 and DEL; the C1 range as well, which UTF-8 writes as C2 80..9F */
        if (c == 0xC2 && (unsigned char)p[1] >= 0x80 && (unsigned char)p[1] < 0xA0) {
            cell[n++] = ' ';
            p++;
            continue;
        }
        cell[n++] = c < 0x20 || c == 0x7F ? ' ' : (char)c;
    }
    fprintf(out, "%.*s%*s  ", (int)n, cell, TR_MAX(width - chars, 0), "");
}

void console_span(char out[24], double seconds)
{
    long long s = seconds > 0 ? (long long)TR_MIN(seconds + 0.5, 1e12) : 0;
    if (s < 120)
        snprintf(out, 24, "%llds", s);
    else if (s < 7200)
        snprintf(out, 24, "%lldm", (s + 30) / 60);
    else if (s < 172800)
        snprintf(out, 24, "%lldh%02lldm", s / 3600, s % 3600 / 60);
    else
        snprintf(out, 24, "%lldd", s / 86400);
}

static bool digits(const char **at, int n, int low, int high, int *out)
{
    *out = 0;
    for (; n; n--, (*at)++) {
        if (**at < '0' || **at > '9')
            return false;
        *out = *out * 10 + (**at - '0');
    }
    return *out >= low && *out <= high;
}

/* Days since 1970 of a date in the Gregorian calendar (Howard Hinnant, "chrono-compatible low-level
 * date algorithms"). */
static int64_t days_of(int year, int month, int day)
{
    int64_t y = year - (month <= 2), era = y / 400, yoe = y - era * 400;
    int64_t doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

int64_t console_time_parse(struct str text)
{
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    char buf[40];
    const char *at = buf;
    int year, month, day, hour = 0, minute = 0, second = 0;
    int64_t ns = 0, scale = 100000000;
    if (text.len < 10 || text.len >= sizeof buf)
        return -1;
    memcpy(buf, text.ptr, text.len);
    buf[text.len] = '\0';
    if (!digits(&at, 4, 1970, 2200, &year) || *at++ != '-' || !digits(&at, 2, 1, 12, &month) ||
        *at++ != '-' || !digits(&at, 2, 1, 31, &day))
        return -1;
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > lengths[month - 1] + (leap && month == 2))
        return -1;
    if (*at) {
        if ((*at != 'T' && *at != ' ') || (at++, !digits(&at, 2, 0, 23, &hour)) || *at++ != ':' ||
            !digits(&at, 2, 0, 59, &minute))
            return -1;
        if (*at == ':' && (at++, !digits(&at, 2, 0, 59, &second)))
            return -1;
        if (*at == '.')
            for (at++; *at >= '0' && *at <= '9'; at++, scale /= 10)
                ns += (*at - '0') * scale;
        if (*at != 'Z' || at[1]) /* only UTC: a time without a zone means another one elsewhere */
            return -1;
    }
    return ((days_of(year, month, day) * 24 + hour) * 60 + minute) * 60000000000 +
           second * 1000000000LL + ns;
}
