/* result_answer: the pure parts of a row's text. See result.h. */
#include <string.h>

#include "worker/job/result.h"

struct str str_trim(struct str s)
{
    while (s.len && strchr(" \t\r\n", s.ptr[0]) && s.ptr[0])
        s.ptr++, s.len--;
    while (s.len && strchr(" \t\r\n", s.ptr[s.len - 1]) && s.ptr[s.len - 1])
        s.len--;
    return s;
}

bool split_reasoning(struct str text, struct str *reasoning, struct str *answer)
{
    static const char close_tag[] = "</think>";
    const size_t n = sizeof close_tag - 1;
    const char *at = text.len ? memmem(text.ptr, text.len, close_tag, n) : NULL;
    if (!at)
        return false;
    *reasoning = (struct str){text.ptr, (size_t)(at - text.ptr)};
    *answer = (struct str){at + n, text.len - reasoning->len - n};
    return true;
}

/* The content of the last \boxed{...}, braces balanced; false: there is none. */
static bool last_boxed(struct str text, struct str *content)
{
    static const char tag[] = "\\boxed{";
    const size_t n = sizeof tag - 1;
    bool found = false;
    for (size_t i = 0; i + n <= text.len; i++) {
        if (memcmp(text.ptr + i, tag, n) != 0)
            continue;
        size_t from = i + n, end = from;
        for (int depth = 1; end < text.len; end++) {
            depth += text.ptr[end] == '{';
            depth -= text.ptr[end] == '}';
            if (depth == 0)
                break;
        }
        if (end == text.len)
            break; /* cut off inside: it says nothing */
        *content = (struct str){text.ptr + from, end - from};
        found = true;
        i = end;
    }
    return found;
}

bool answer_is_correct(struct str answer, struct str expected)
{
    struct str boxed;
    if (last_boxed(answer, &boxed))
        answer = boxed;
    return str_eq(str_trim(answer), str_trim(expected));
}
