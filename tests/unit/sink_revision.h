/* sink_revision: what every sink keeps of the configuration that a job's first counted start had.
 * For an empty database; includes of cmocka come before this. */
#ifndef TRANCHE_TESTS_SINK_REVISION_H
#define TRANCHE_TESTS_SINK_REVISION_H

#include "worker/sink/sink.h"

/* The revision of the first counted start stays until the row, also where starts come back. */
static void check_first_revision(struct sink *s)
{
    struct err err = {0};
    struct text found = {0};
    uint8_t sha[32] = {0};
    struct key key = {STR("main"), STR("b"), STR("a")};
    struct str first = STR("0123456789abcdef"), second = STR("fedcba9876543210");
    struct lookup l = {.key = key, .sha256 = sha};
    assert_int_equal(s->ops->config_write(s, first, STR("{\"max_tokens\":7}"), &err), E_OK);
    assert_int_equal(s->ops->config_write(s, first, STR("another"), &err), E_OK);
    assert_int_equal(s->ops->config_read(s, first, &found, &err), E_OK);
    assert_true(str_eq(text_view(&found), STR("{\"max_tokens\":7}")));
    assert_int_equal(s->ops->config_read(s, second, &found, &err), E_OK);
    assert_int_equal(found.len, 0);
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_string_equal(l.config_revision, "");
    assert_int_equal(s->ops->count_attempts(s, &key, &first, 1, COUNT_START, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &key, NULL, 1, COUNT_BACK, NULL, &err), E_OK);
    assert_int_equal(s->ops->count_attempts(s, &key, &second, 1, COUNT_ALONE, NULL, &err), E_OK);
    assert_int_equal(s->ops->lookup(s, &l, 1, &err), E_OK);
    assert_string_equal(l.config_revision, "0123456789abcdef");
    assert_int_equal(l.attempts, 1);
    text_close(&found);
}

#endif
