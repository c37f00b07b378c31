/* http_page: the page at `/`, for a person: whether it works, how far it is, how fast, what went
 * wrong last. Plain HTML that asks nobody else for anything and runs no script; everything that is
 * not ours is escaped. */
#ifndef TRANCHE_WORKER_MONITOR_HTTP_PAGE_H
#define TRANCHE_WORKER_MONITOR_HTTP_PAGE_H

#include "worker/job/text.h"

enum { PAGE_SAMPLES = 11 };
/* Of the last ten seconds, one a second. */
struct page_rates {
    int64_t at_ns[PAGE_SAMPLES], tokens[PAGE_SAMPLES], rows[PAGE_SAMPLES];
    int n; /* ever taken */
};
void page_sample(struct page_rates *r, int64_t now_ns); /* where one is due; mono */
void page_render(struct text *out, const struct page_rates *r, int64_t now_ns, int64_t wall_ns);
/* & < > " ' as entities; a control or NUL as a space. */
void text_html(struct text *out, struct str s);

#endif
