/* jinja_text: Python's string methods over UTF-8 with content marks. Positions that templates see
 * count code points; positions here are bytes. All inputs are valid UTF-8. */
#ifndef TRANCHE_ENGINE_JINJA_TEXT_H
#define TRANCHE_ENGINE_JINJA_TEXT_H

#include "engine/jinja_value.h"

/* Byte offset of the character behind the one at `at`; of the one before `at`. */
size_t jinja_text_next(struct jinja_text t, size_t at);
size_t jinja_text_prev(struct jinja_text t, size_t at);
size_t jinja_text_length(struct jinja_text t); /* code points */
int32_t jinja_text_char(struct jinja_text t, size_t at);
/* Appends one code point, unmarked. */
int jinja_put_char(struct jinja_run *run, struct jinja_builder *b, int32_t cp) TR_MUSTCHECK;

bool jinja_is_space(int32_t cp); /* str.isspace, and \s of Python's re */
/* First occurrence at or behind `from`, last occurrence; SIZE_MAX when there is none. */
size_t jinja_text_find(struct jinja_text t, struct str needle, size_t from);
size_t jinja_text_rfind(struct jinja_text t, struct str needle);
size_t jinja_text_count(struct jinja_text t, struct str needle);

enum { JINJA_LEFT = 1, JINJA_RIGHT = 2 };
/* str.strip and its sides; `chars` NULL: white space. */
struct jinja_text jinja_text_strip(struct jinja_text t, const struct str *chars, int sides);
/* The same in place; what it strips are steps. */
int jinja_text_trim(struct jinja_run *run, struct jinja_text *t, const struct str *chars,
                    int sides) TR_MUSTCHECK;
/* str.split / rsplit; `sep` NULL: runs of white space; max < 0: no limit. */
int jinja_text_split(struct jinja_run *run, struct jinja_text t, const struct str *sep, int64_t max,
                     bool from_right, struct jinja_value *out) TR_MUSTCHECK;
int jinja_text_lines(struct jinja_run *run, struct jinja_text t, bool keep_ends,
                     struct jinja_value *out) TR_MUSTCHECK;
int jinja_text_replace(struct jinja_run *run, struct jinja_text t, struct str old,
                       struct jinja_text new_text, int64_t max,
                       struct jinja_text *out) TR_MUSTCHECK;
/* t[start:stop:step] by code points, NULL where a bound is absent. step is not 0. */
int jinja_text_slice(struct jinja_run *run, struct jinja_text t, const int64_t *start,
                     const int64_t *stop, int64_t step, struct jinja_text *out) TR_MUSTCHECK;
/* Python's slice bounds: where it begins, before which index it ends (-1: down to the first) and
 * how many items it takes. */
int64_t jinja_slice_bounds(int64_t n, const int64_t *start, const int64_t *stop, int64_t step,
                           int64_t *first, int64_t *end);

enum jinja_case {
    JINJA_UPPER,
    JINJA_LOWER,
    JINJA_CAPITALIZE,
    JINJA_TITLE,        /* str.title: letters behind non-letters */
    JINJA_TITLE_FILTER, /* the `title` filter: behind white space and - ( { [ < */
};
/* Python's full case mapping (Unicode 15, 3.13, with SpecialCasing and the final sigma). A result
 * that holds content bytes is content as a whole. */
int jinja_text_case(struct jinja_run *run, struct jinja_text t, enum jinja_case how,
                    struct jinja_text *out) TR_MUSTCHECK;

enum jinja_class {
    JINJA_IS_UPPER,
    JINJA_IS_LOWER,
    JINJA_IS_ALPHA,
    JINJA_IS_DIGIT,
    JINJA_IS_ALNUM,
    JINJA_IS_SPACE
};
bool jinja_text_is(struct jinja_text t, enum jinja_class what);

#endif
