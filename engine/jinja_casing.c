/* jinja_casing: case mapping and character classes as Python's str has them, over utf8proc's
 * tables. Unicode 15, 3.13 "Default Case Algorithms"; the final sigma is its only conditional
 * mapping here. */
#include <utf8proc.h>

#include "engine/jinja_text.h"

#include "engine/jinja_casing_table.h"

enum cased { NOT_CASED, CASED_UPPER, CASED_LOWER, CASED_TITLE };

static bool between(int32_t cp, int32_t low, int32_t high)
{
    return cp >= low && cp <= high;
}

/* Other_Lowercase and Other_Uppercase: cased without being a letter of that category. */
static enum cased cased_other(int32_t cp)
{
    if (cp == 0xAA || cp == 0xBA || between(cp, 0x2B0, 0x2B8) || between(cp, 0x2C0, 0x2C1) ||
        between(cp, 0x2E0, 0x2E4) || cp == 0x345 || cp == 0x37A || between(cp, 0x1D2C, 0x1D6A) ||
        cp == 0x1D78 || between(cp, 0x1D9B, 0x1DBF) || cp == 0x2071 || cp == 0x207F ||
        between(cp, 0x2090, 0x209C) || between(cp, 0x2170, 0x217F) || between(cp, 0x24D0, 0x24E9))
        return CASED_LOWER;
    if (between(cp, 0x2160, 0x216F) || between(cp, 0x24B6, 0x24CF) ||
        between(cp, 0x1F130, 0x1F149) || between(cp, 0x1F150, 0x1F169) ||
        between(cp, 0x1F170, 0x1F189))
        return CASED_UPPER;
    return NOT_CASED;
}

static enum cased cased_of(int32_t cp)
{
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
        return CASED_UPPER;
    case UTF8PROC_CATEGORY_LL:
        return CASED_LOWER;
    case UTF8PROC_CATEGORY_LT:
        return CASED_TITLE;
    default:
        return cased_other(cp);
    }
}

static bool case_ignorable(int32_t cp)
{
    static const int32_t mid_word[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,
                                       0x5F4,  0x2018, 0x2019, 0x2024, 0x2027, 0xFE13,
                                       0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    for (size_t i = 0; i < TR_COUNT(mid_word); i++)
        if (cp == mid_word[i])
            return true;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        return false;
    }
}

/* Unicode table 3-17, Final_Sigma: a cased letter before it, none behind. */
static bool sigma_is_final(struct jinja_text t, size_t at)
{
    size_t back = at, ahead = jinja_text_next(t, at);
    int looked = 0; /* a hostile run of ignorable characters must not make this quadratic */
    bool before = false;
    while (back > 0 && looked++ < 1000) {
        back = jinja_text_prev(t, back);
        int32_t cp = jinja_text_char(t, back);
        if (!case_ignorable(cp)) {
            before = cased_of(cp) != NOT_CASED;
            break;
        }
    }
    for (looked = 0; before && ahead < t.len && looked < 1000; looked++) {
        int32_t cp = jinja_text_char(t, ahead);
        if (!case_ignorable(cp))
            return cased_of(cp) == NOT_CASED;
        ahead = jinja_text_next(t, ahead);
    }
    return before;
}

static int put_lower(struct jinja_run *run, struct jinja_builder *b, struct jinja_text t, size_t at)
{
    int32_t cp = jinja_text_char(t, at);
    if (cp == 0x130)
        return jinja_put_str(run, b, STR("i\xCC\x87"));
    if (cp == 0x3A3)
        return jinja_put_char(run, b, sigma_is_final(t, at) ? 0x3C2 : 0x3C3);
    return jinja_put_char(run, b, utf8proc_tolower(cp));
}

static int put_upper(struct jinja_run *run, struct jinja_builder *b, int32_t cp, bool title)
{
    size_t low = 0, high = TR_COUNT(casing_special);
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (casing_special[mid].cp < cp)
            low = mid + 1;
        else
            high = mid;
    }
    if (low < TR_COUNT(casing_special) && casing_special[low].cp == cp)
        return jinja_put_str(run, b,
                             str_of(title ? casing_special[low].title : casing_special[low].upper));
    return jinja_put_char(run, b, title ? utf8proc_totitle(cp) : utf8proc_toupper(cp));
}

static bool begins_word(int32_t cp)
{
    return jinja_is_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<';
}

static int put_cased(struct jinja_run *run, struct jinja_builder *b, struct jinja_text t, size_t at,
                     enum jinja_case how, bool first)
{
    int32_t cp = jinja_text_char(t, at);
    switch (how) {
    case JINJA_UPPER:
        return put_upper(run, b, cp, false);
    case JINJA_LOWER:
        return put_lower(run, b, t, at);
    case JINJA_CAPITALIZE:
    case JINJA_TITLE:
        return first ? put_upper(run, b, cp, true) : put_lower(run, b, t, at);
    default:
        return first ? put_upper(run, b, cp, false) : put_lower(run, b, t, at);
    }
}

int jinja_text_case(struct jinja_run *run, struct jinja_text t, enum jinja_case how,
                    struct jinja_text *out)
{
    struct jinja_builder b = {0};
    bool first = true;
    if (jinja_step_bytes(run, t.len * 4) < 0)
        return E_JOB;
    for (size_t at = 0; at < t.len; at = jinja_text_next(t, at)) {
        int32_t cp = jinja_text_char(t, at);
        if (put_cased(run, &b, t, at, how, first) < 0)
            return E_JOB;
        first = how == JINJA_TITLE          ? cased_of(cp) == NOT_CASED
                : how == JINJA_TITLE_FILTER ? begins_word(cp)
                                            : false;
    }
    if (jinja_built(run, &b, out) < 0)
        return E_JOB;
    if (jinja_is_marked(t))
        out->marks = &jinja_marks_all;
    return E_OK;
}

static bool is_digit(int32_t cp)
{
    return utf8proc_category(cp) == UTF8PROC_CATEGORY_ND || cp == 0xB2 || cp == 0xB3 ||
           cp == 0xB9 || cp == 0x2070 || between(cp, 0x2074, 0x2079) || between(cp, 0x2080, 0x2089);
}

static bool in_class(int32_t cp, enum jinja_class what)
{
    utf8proc_category_t category = utf8proc_category(cp);
    bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    bool number = category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
    switch (what) {
    case JINJA_IS_ALPHA:
        return letter;
    case JINJA_IS_DIGIT:
        return is_digit(cp);
    case JINJA_IS_ALNUM:
        return letter || number;
    default:
        return jinja_is_space(cp);
    }
}

bool jinja_text_is(struct jinja_text t, enum jinja_class what)
{
    bool any = false;
    for (size_t at = 0; at < t.len; at = jinja_text_next(t, at)) {
        int32_t cp = jinja_text_char(t, at);
        if (what == JINJA_IS_UPPER || what == JINJA_IS_LOWER) {
            enum cased is = cased_of(cp), want = what == JINJA_IS_UPPER ? CASED_UPPER : CASED_LOWER;
            if (is != NOT_CASED && is != want)
                return false;
            any |= is == want;
        } else if (!in_class(cp, what)) {
            return false;
        } else {
            any = true;
        }
    }
    return any;
}
