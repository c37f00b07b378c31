/* tokenizer_split: cuts text into pre-tokens. Each scanner stands for one known list of regular
 * expressions, recognised by its exact text; the rules are tried in the order of the alternatives,
 * and what a backtracking engine finds is written down as plain runs. Every scanner looks at each
 * character a bounded number of times. */
#include "engine/tokenizer_impl.h"

/* The file may write CR and LF as escapes of the expression or as the characters themselves; the
 * known texts below have the escape, and `split_equal` takes both. */
#define QWEN2_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define QWEN2_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const struct {
    enum split_kind kind;
    size_t n;
    const char *patterns[3];
} known[] = {
    {SPLIT_QWEN2, 1, {QWEN2_HEAD "\\p{N}" QWEN2_TAIL}},
    {SPLIT_LLAMA3, 1, {QWEN2_HEAD "\\p{N}{1,3}" QWEN2_TAIL}},
    {SPLIT_DEEPSEEK,
     3,
     {"\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
      "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

static bool split_equal(const char *have, const char *want)
{
    for (; *want; want++, have++) {
        if (want[0] == '\\' && (want[1] == 'r' || want[1] == 'n') &&
            *have == (want[1] == 'r' ? '\r' : '\n'))
            want++;
        else if (*have != *want)
            return false;
    }
    return *have == '\0';
}

enum split_kind split_find(const char *const *patterns, size_t n)
{
    for (size_t k = 0; k < TR_COUNT(known); k++) {
        size_t i = 0;
        while (i < n && n == known[k].n && split_equal(patterns[i], known[k].patterns[i]))
            i++;
        if (i == n)
            return known[k].kind;
    }
    return SPLIT_NONE;
}

/* Flags and length of the character at p. */
static inline unsigned class_of(const unsigned char *p, size_t *len)
{
    if (*p < 0x80) {
        *len = 1;
        return unicode_flags[((uint32_t)unicode_block[0] << 7) | *p];
    }
    return unicode_class(utf8_get(p, len));
}

/* End of the run of characters that have one of the flags. */
static inline const unsigned char *run_of(const unsigned char *p, const unsigned char *end,
                                          unsigned flags)
{
    size_t len;
    while (p < end && class_of(p, &len) & flags)
        p += len;
    return p;
}

static inline bool is_newline(unsigned char c)
{
    return c == '\r' || c == '\n';
}

static inline const unsigned char *newlines(const unsigned char *p, const unsigned char *end)
{
    while (p < end && is_newline(*p))
        p++;
    return p;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a space: up to the run's last newline; else all of it at the end of
 * the text, or all but its last character, which goes with what follows. */
static const unsigned char *spaces(const unsigned char *p, const unsigned char *end)
{
    const unsigned char *newline = NULL, *last = p, *at = p;
    size_t len;
    while (at < end && class_of(at, &len) & UNICODE_SPACE) {
        if (is_newline(*at))
            newline = at;
        last = at;
        at += len;
    }
    if (newline)
        return newline + 1;
    return at == end || last == p ? at : last;
}

/* 's 't 're 've 'm 'll 'd behind an apostrophe at p, in any case: end, or p. U+017F folds to s. */
static const unsigned char *contraction(const unsigned char *p, const unsigned char *end, bool fold)
{
    if (end - p < 2)
        return p;
    unsigned char bit = fold ? 0x20 : 0, a = p[1] | bit, b = end - p > 2 ? p[2] | bit : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return p + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return p + 3;
    if (fold && end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF)
        return p + 3;
    return p;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*|... */
static const unsigned char *scan_qwen(const unsigned char *p, const unsigned char *end, int digits)
{
    const unsigned char *q;
    size_t len, next;
    unsigned c = class_of(p, &len);
    if (c & UNICODE_L)
        return run_of(p + len, end, UNICODE_L);
    if (*p == '\'' && (q = contraction(p, end, true)) != p)
        return q;
    if (c & UNICODE_N) {
        for (q = p + len; --digits > 0 && q < end && class_of(q, &len) & UNICODE_N;)
            q += len;
        return q;
    }
    q = p + len;
    if (!is_newline(*p) && q < end && class_of(q, &next) & UNICODE_L)
        return run_of(q + next, end, UNICODE_L);
    const unsigned other = UNICODE_SPACE | UNICODE_L | UNICODE_N;
    if (!(c & UNICODE_SPACE) || (*p == ' ' && q < end && !(class_of(q, &next) & other))) {
        while (q < end && !(class_of(q, &next) & other))
            q += next;
        return newlines(q, end);
    }
    return spaces(p, end);
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static const unsigned char *scan_gpt2(const unsigned char *p, const unsigned char *end)
{
    const unsigned other = UNICODE_SPACE | UNICODE_L | UNICODE_N;
    const unsigned char *q = p;
    size_t len;
    if (*p == '\'' && (q = contraction(p, end, false)) != p)
        return q;
    if (*p == ' ' && end - p > 1 && !(class_of(p + 1, &len) & UNICODE_SPACE))
        q = p + 1;
    unsigned c = class_of(q, &len);
    if (c & UNICODE_L)
        return run_of(q, end, UNICODE_L);
    if (c & UNICODE_N)
        return run_of(q, end, UNICODE_N);
    if (!(c & UNICODE_SPACE)) {
        while (q < end && !(class_of(q, &len) & other))
            q += len;
        return q;
    }
    const unsigned char *last = p;
    for (q = p; q < end && class_of(q, &len) & UNICODE_SPACE; q += len)
        last = q;
    return q == end || last == p ? q : last;
}

/* ---- DeepSeek-V3: digits apart, then Chinese and Japanese runs apart, then the third expression
 * ---- */

static inline bool is_ascii_letter(unsigned char c)
{
    return (unsigned char)((c | 0x20) - 'a') < 26;
}

static inline bool is_cjk(uint32_t cp)
{
    return (cp >= 0x4E00 && cp <= 0x9FA5) || (cp >= 0x3040 && cp <= 0x30FF);
}

/* What the third expression matches at p: its end, or p when nothing matches. */
static const unsigned char *match_deepseek(const unsigned char *p, const unsigned char *end)
{
    const unsigned mark = UNICODE_P | UNICODE_S, word = UNICODE_L | UNICODE_M;
    const unsigned char *q;
    size_t len, next;
    unsigned c = class_of(p, &len);
    if (c & word)
        return run_of(p, end, word);
    if (*p < 0x80 && c & mark && end - p > 1 && is_ascii_letter(p[1])) {
        for (q = p + 1; q < end && is_ascii_letter(*q);)
            q++;
        return q;
    }
    q = p + len;
    if (!is_newline(*p) && !(c & mark) && q < end && class_of(q, &next) & word)
        return run_of(q, end, word);
    if (c & mark || (*p == ' ' && q < end && class_of(q, &next) & mark))
        return newlines(run_of(q, end, mark), end);
    return c & UNICODE_SPACE ? spaces(p, end) : p;
}

/* End of what the first two cuts leave in one piece at p. */
static const unsigned char *segment(const unsigned char *p, const unsigned char *end, bool *digits)
{
    size_t len;
    const unsigned char *q = p;
    *digits = (class_of(p, &len) & UNICODE_N) != 0;
    if (*digits) {
        for (int i = 0; i < 3 && q < end && class_of(q, &len) & UNICODE_N; i++)
            q += len;
        return q;
    }
    bool cjk = is_cjk(utf8_get(p, &len));
    for (; q < end; q += len) {
        if (*q >= 0xE3 && *q < 0xEA) {
            if (is_cjk(utf8_get(q, &len)) != cjk)
                break;
        } else if (cjk) {
            break;
        }
        if (class_of(q, &len) & UNICODE_N)
            break;
    }
    return q;
}

static const unsigned char *scan_deepseek(struct splitter *s)
{
    const unsigned char *p = s->at;
    if (p >= s->segment_end) {
        bool digits;
        s->segment_end = segment(p, s->end, &digits);
        if (digits)
            return s->segment_end;
    }
    size_t len;
    const unsigned char *q = match_deepseek(p, s->segment_end);
    if (q != p)
        return q;
    /* Control and unassigned characters match nothing: up to the next match they are one piece. */
    for (q = p; q < s->segment_end && match_deepseek(q, s->segment_end) == q; q += len)
        class_of(q, &len);
    return q;
}

/* In front of each run of U+2581 that something else precedes. */
static const unsigned char *scan_words(const unsigned char *p, const unsigned char *end)
{
    static const char mark[] = "\u2581";
    while (end - p >= 3 && memcmp(p, mark, 3) == 0)
        p += 3;
    while (p < end) {
        p = memchr(p, mark[0], (size_t)(end - p));
        if (!p)
            return end;
        if (end - p >= 3 && memcmp(p, mark, 3) == 0)
            return p;
        p++;
    }
    return end;
}

size_t split_next(struct splitter *s)
{
    const unsigned char *begin = s->at;
    switch (s->kind) {
    case SPLIT_QWEN2:
        s->at = scan_qwen(begin, s->end, 1);
        break;
    case SPLIT_LLAMA3:
        s->at = scan_qwen(begin, s->end, 3);
        break;
    case SPLIT_DEEPSEEK:
        s->at = scan_deepseek(s);
        break;
    case SPLIT_GPT2:
        s->at = scan_gpt2(begin, s->end);
        break;
    case SPLIT_WORDS:
        s->at = scan_words(begin, s->end);
        break;
    case SPLIT_NONE:
        s->at = s->end;
        break;
    }
    return (size_t)(s->at - begin);
}
