/* unicode: see unicode.h. */
#include "engine/unicode.h"

size_t utf8_put(char *out, uint32_t cp)
{
    unsigned char *p = (unsigned char *)out;
    if (cp < 0x80) {
        p[0] = (unsigned char)cp;
        return 1;
    }
    if (cp < 0x800) {
        p[0] = (unsigned char)(0xC0 | cp >> 6);
        p[1] = (unsigned char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        p[0] = (unsigned char)(0xE0 | cp >> 12);
        p[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3F));
        p[2] = (unsigned char)(0x80 | (cp & 0x3F));
        return 3;
    }
    p[0] = (unsigned char)(0xF0 | cp >> 18);
    p[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3F));
    p[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3F));
    p[3] = (unsigned char)(0x80 | (cp & 0x3F));
    return 4;
}

enum utf8_state utf8_look(const unsigned char *p, size_t n, size_t *len)
{
    unsigned char lead = p[0], low = 0x80, high = 0xBF;
    size_t want = 0;
    *len = 1;
    if (lead < 0x80)
        return UTF8_VALID;
    if (lead >= 0xC2 && lead <= 0xDF)
        want = 2;
    else if (lead >= 0xE0 && lead <= 0xEF)
        want = 3;
    else if (lead >= 0xF0 && lead <= 0xF4)
        want = 4;
    else
        return UTF8_INVALID;
    /* Only the second byte has a narrower range: no overlong form, no surrogate, no plane 17. */
    if (lead == 0xE0)
        low = 0xA0;
    else if (lead == 0xED)
        high = 0x9F;
    else if (lead == 0xF0)
        low = 0x90;
    else if (lead == 0xF4)
        high = 0x8F;
    for (size_t i = 1; i < want; i++, low = 0x80, high = 0xBF) {
        if (i == n) {
            *len = n;
            return UTF8_CUT;
        }
        if (p[i] < low || p[i] > high) {
            *len = i;
            return UTF8_INVALID;
        }
    }
    *len = want;
    return UTF8_VALID;
}

size_t utf8_valid_prefix(struct str s, unsigned char *lead_max)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t i = 0, len;
    unsigned char most = 0;
    while (i < s.len) {
        uint64_t word;
        while (s.len - i >= 8 && (memcpy(&word, p + i, 8), (word & 0x8080808080808080u) == 0))
            i += 8;
        if (i == s.len)
            break;
        if (utf8_look(p + i, s.len - i, &len) != UTF8_VALID)
            break;
        most = TR_MAX(most, p[i]);
        i += len;
    }
    *lead_max = most;
    return i;
}

/* ---- NFC ---- */

void nfc_buf_close(struct nfc_buf *buf)
{
    if (!buf)
        return;
    mem_free(buf->cps);
    mem_free(buf->sorted);
    *buf = (struct nfc_buf){0};
}

static bool nfc_reserve(struct nfc_buf *buf, size_t used, size_t n)
{
    if (n <= buf->cap)
        return true;
    size_t cap = TR_MAX(n, buf->cap * 2 + 256);
    uint32_t *cps = mem_alloc(cap, sizeof *cps), *sorted = mem_alloc(cap, sizeof *sorted);
    if (!cps || !sorted) {
        mem_free(cps);
        mem_free(sorted);
        return false;
    }
    if (used)
        memcpy(cps, buf->cps, used * sizeof *cps);
    nfc_buf_close(buf);
    *buf = (struct nfc_buf){cps, sorted, cap};
    return true;
}

/* Index of the entry whose upper 24 bits are cp, or n. */
static size_t table_find(const uint32_t *table, size_t n, uint32_t cp)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (table[mid] >> 8 < cp)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && table[low] >> 8 == cp ? low : n;
}

static uint32_t ccc_of(uint32_t cp)
{
    if (!(unicode_class(cp) & UNICODE_NFC))
        return 0;
    size_t i = table_find(unicode_ccc, unicode_ccc_n, cp);
    return i < unicode_ccc_n ? unicode_ccc[i] & 0xFF : 0;
}

/* Hangul syllables are arithmetic (Unicode 16, §3.12). */
enum {
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7,
    LN = 19,
    VN = 21,
    TN = 28
};

/* Canonical decomposition of cp, 1..4 code points. */
static size_t decompose(uint32_t cp, uint32_t *out)
{
    if (cp - S_BASE < LN * VN * TN) {
        uint32_t s = cp - S_BASE;
        out[0] = L_BASE + s / (VN * TN);
        out[1] = V_BASE + s % (VN * TN) / TN;
        out[2] = T_BASE + s % TN;
        return s % TN ? 3 : 2;
    }
    size_t i = cp < 0xC0 ? unicode_decomp_n : table_find(unicode_decomp, unicode_decomp_n, cp);
    if (i == unicode_decomp_n) {
        out[0] = cp;
        return 1;
    }
    size_t n = unicode_decomp[i] & 0xFF;
    memcpy(out, unicode_decomp_data + unicode_decomp_at[i], n * sizeof *out);
    return n;
}

/* The primary composite of a pair, or 0. */
static uint32_t compose_pair(uint32_t a, uint32_t b)
{
    if (a - L_BASE < LN && b - V_BASE < VN)
        return S_BASE + ((a - L_BASE) * VN + (b - V_BASE)) * TN;
    if (a - S_BASE < LN * VN * TN && (a - S_BASE) % TN == 0 && b - (T_BASE + 1) < TN - 1)
        return a + (b - T_BASE);
    uint64_t key = (uint64_t)a << 32 | b;
    size_t low = 0, high = unicode_pair_n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (unicode_pair[mid] < key)
            low = mid + 1;
        else
            high = mid;
    }
    return low < unicode_pair_n && unicode_pair[low] == key ? unicode_pair_to[low] : 0;
}

/* Stable sort of marks by combining class: counting, so that a megabyte of marks stays linear. */
static void reorder(uint32_t *cps, uint32_t *sorted, size_t n)
{
    if (n < 2)
        return;
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[ccc_of(cps[i]) + 1]++;
    for (size_t c = 0; c < 256; c++)
        start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++)
        sorted[start[ccc_of(cps[i])]++] = cps[i];
    memcpy(cps, sorted, n * sizeof *cps);
}

/* Reorders and composes a decomposed span in place; returns its new length. */
static size_t compose(struct nfc_buf *buf, size_t n)
{
    uint32_t *cps = buf->cps;
    for (size_t i = 0; i < n;) {
        size_t j = i;
        while (j < n && ccc_of(cps[j]) != 0)
            j++;
        reorder(cps + i, buf->sorted, j - i);
        i = j + 1;
    }
    size_t out = 0, starter = SIZE_MAX;
    uint32_t before = 0; /* class of what stands last behind the starter; 0: nothing does */
    for (size_t i = 0; i < n; i++) {
        uint32_t ccc = ccc_of(cps[i]), joined = 0;
        bool adjacent = starter != SIZE_MAX && out == starter + 1;
        if (starter != SIZE_MAX && (adjacent || (before != 0 && before < ccc)))
            joined = compose_pair(cps[starter], cps[i]);
        if (joined) {
            cps[starter] = joined;
            continue;
        }
        if (ccc == 0)
            starter = out;
        before = ccc;
        cps[out++] = cps[i];
    }
    return out;
}

size_t nfc_clean_prefix(struct str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t i = 0, last = 0, len;
    uint64_t word;
    while (i < s.len) {
        while (s.len - i >= 8 && (memcpy(&word, p + i, 8), (word & 0x8080808080808080u) == 0)) {
            last = i + 7;
            i += 8;
        }
        if (i == s.len)
            break;
        if (p[i] < 0xCC) { /* below U+0300: never changed, never joins to the left */
            last = i;
            i += p[i] < 0x80 ? 1 : 2;
            continue;
        }
        if (unicode_class(utf8_get(p + i, &len)) & UNICODE_NFC)
            return last;
        last = i;
        i += len;
    }
    return s.len;
}

/* Decomposes the span that starts at `at` (its first character may be clean: the rest may join it)
 * into buf. Returns the span's end, or SIZE_MAX when memory is refused. */
static size_t span_load(struct str s, size_t at, struct nfc_buf *buf, size_t *n)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t i = at, len;
    *n = 0;
    while (i < s.len) {
        uint32_t cp = utf8_get(p + i, &len);
        if (i > at && !(unicode_class(cp) & UNICODE_NFC))
            break;
        if (!nfc_reserve(buf, *n, *n + 4))
            return SIZE_MAX;
        *n += decompose(cp, buf->cps + *n);
        i += len;
    }
    return i;
}

int64_t nfc_normalize(struct str s, char *out, struct nfc_buf *buf, struct nfc_mark *marks,
                      size_t n_marks)
{
    size_t at = 0, used = 0, mark = 0;
    while (at < s.len) {
        size_t clean = nfc_clean_prefix((struct str){s.ptr + at, s.len - at});
        for (; mark < n_marks && marks[mark].at <= at + clean; mark++)
            marks[mark].at = marks[mark].at - at + used;
        memcpy(out + used, s.ptr + at, clean);
        used += clean;
        at += clean;
        if (at == s.len)
            break;
        size_t n, end = span_load(s, at, buf, &n), begin = used;
        if (end == SIZE_MAX)
            return -1;
        n = compose(buf, n);
        for (size_t i = 0; i < n; i++)
            used += utf8_put(out + used, buf->cps[i]);
        for (; mark < n_marks && marks[mark].at < end; mark++)
            marks[mark].at = marks[mark].up ? used : begin;
        at = end;
    }
    for (; mark < n_marks; mark++)
        marks[mark].at = used;
    return (int64_t)used;
}
