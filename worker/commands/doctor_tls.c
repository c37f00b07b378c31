/* doctor_tls: how long certificates still hold: those of servers, and the files that we show. */
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <time.h>

#include "worker/commands/doctor.h"

enum { DAY = 86400, DAYS_WARN = 30 };

int64_t certificate_end(const struct x509_st *certificate)
{
    struct tm t;
    if (!certificate || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &t) != 1)
        return -1;
    return (int64_t)timegm(&t);
}

void doctor_certificate(struct doctor *d, const char *whose, int64_t end)
{
    int64_t left = end - clock_wall_ns(clock_system()) / 1000000000;
    if (end < 0)
        doctor_report(d, VERDICT_WARN, "tls", "look at it with `openssl x509 -noout -enddate`",
                      "%s: its end cannot be read", whose);
    else if (left < 0)
        doctor_report(d, VERDICT_FAULT, "tls", "renew it; links are refused until then",
                      "%s: expired %lld days ago", whose, (long long)(-left / DAY));
    else
        doctor_report(d, left < DAYS_WARN * (int64_t)DAY ? VERDICT_WARN : VERDICT_OK, "tls",
                      left < DAYS_WARN * (int64_t)DAY
                          ? "renew it before then; links that are open go on, new ones will not"
                          : NULL,
                      "%s: %lld days left, warned of below %d", whose, (long long)(left / DAY),
                      DAYS_WARN);
}

/* A bundle's end is that of the certificate that ends first. */
void doctor_certificate_file(struct doctor *d, const char *path)
{
    FILE *f = path && *path ? fopen(path, "re") : NULL;
    int64_t end = INT64_MAX;
    bool found = false;
    char whose[320];
    if (!f)
        return; /* that it cannot be read, who connects with it says */
    for (X509 *x; (x = PEM_read_X509(f, NULL, NULL, NULL)) != NULL; X509_free(x)) {
        int64_t at = certificate_end(x);
        end = TR_MIN(end, at);
        found = true;
    }
    fclose(f);
    snprintf(whose, sizeof whose, "%s", path);
    if (found)
        doctor_certificate(d, whose, end);
}
