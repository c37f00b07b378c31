/* Loading through a backend that copies behind the reader's back: every byte arrives, in order, and
 * no slot is filled again before its copy is done. The fake keeps what weight_load was given as
 * pointers and copies at load_wait, as late as the contract allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "engine/log.h"
#include "engine/upload.h"
#include "worker/bench/bench_folder.h"

enum { LOADS_MAX = 4096 };
struct load {
    char *to;
    const char *from;
    size_t bytes;
    bool done;
};
struct weight {
    char *data;
    int64_t n, k;
};
struct fake {
    struct backend base;
    struct load loads[LOADS_MAX];
    int n_loads, marks[LOAD_MARKS], latest;
    bool fail_mark;
    void *staging;
};

static struct fake *self(struct backend *b)
{
    return (struct fake *)b;
}

static int fake_load(struct backend *b, struct weight *w, int64_t row0, const void *src,
                     int64_t rows, struct err *err)
{
    struct fake *f = self(b);
    struct load l = {w->data + row0 * w->k * 2, src, (size_t)(rows * w->k) * 2, false};
    (void)err;
    if (!b->ops->staging) {
        memcpy(l.to, l.from, l.bytes);
        return E_OK;
    }
    assert_true(f->n_loads < LOADS_MAX);
    f->loads[f->n_loads++] = l;
    return E_OK;
}

static void *fake_staging(struct backend *b, size_t bytes, struct err *err)
{
    (void)err;
    return self(b)->staging = mem_alloc(bytes, 1);
}

static void fake_staging_end(struct backend *b, void *staging)
{
    assert_ptr_equal(staging, self(b)->staging);
    mem_free(staging);
    self(b)->staging = NULL;
}

static int fake_mark(struct backend *b, int mark, struct err *err)
{
    struct fake *f = self(b);
    assert_true(mark >= 0 && mark < LOAD_MARKS);
    if (f->fail_mark && f->n_loads == 3)
        return err_set(err, E_FATAL, "no more marks");
    f->marks[mark] = f->n_loads;
    return E_OK;
}

static int fake_wait(struct backend *b, int mark, struct err *err)
{
    struct fake *f = self(b);
    (void)err;
    for (int i = 0; i < f->marks[mark]; i++) {
        struct load *l = &f->loads[i];
        if (!l->done)
            memcpy(l->to, l->from, l->bytes);
        l->done = true;
    }
    f->latest = TR_MAX(f->latest, f->marks[mark]);
    return E_OK;
}

static const struct backend_ops plain = {.weight_load = fake_load};
static const struct backend_ops ahead = {.weight_load = fake_load,
                                         .staging = fake_staging,
                                         .staging_end = fake_staging_end,
                                         .load_mark = fake_mark,
                                         .load_wait = fake_wait};

/* 22 blocks of 8 MiB and some: more than there are slots. */
static const struct bench_shape shape = {1, 512, 2048, 4, 2, 128, 90000};

static int load(struct model *m, const struct backend_ops *ops, bool fail, char *into[2],
                struct err *err)
{
    static const enum tensor_role roles[2] = {TENSOR_EMBED, TENSOR_HEAD};
    struct fake *f = mem_alloc(1, sizeof *f);
    struct upload_part parts[2];
    struct weight w[2];
    f->base.ops = ops;
    f->fail_mark = fail;
    for (int i = 0; i < 2; i++) {
        struct weights_tensor t = weights_tensor(model_weights(m), model_config(m), roles[i], 0);
        w[i] = (struct weight){into[i], t.n, t.k};
        parts[i] = (struct upload_part){t, &w[i], 0};
    }
    int rc = upload_run(&f->base, parts, 2, "test", err);
    if (rc == E_OK)
        assert_int_equal(f->latest, f->n_loads); /* nothing is on its way any more */
    assert_null(f->staging);
    mem_free(f);
    return rc;
}

static void late_copies_give_the_same_bytes(void **state)
{
    (void)state;
    char path[256];
    struct err err = {0};
    struct model *m = NULL;
    const size_t bytes = (size_t)shape.vocab * (size_t)shape.hidden * 2;
    char *a[2] = {mem_alloc(bytes, 1), mem_alloc(bytes, 1)};
    char *b[2] = {mem_alloc(bytes, 1), mem_alloc(bytes, 1)};
    assert_true(a[0] && a[1] && b[0] && b[1]);
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    if (bench_folder_make(path, sizeof path, &shape, &err) < 0)
        fail_msg("%s", err.msg);
    if (model_open(&m, path, &err) < 0)
        fail_msg("%s", err.msg);
    bench_folder_remove(path);
    assert_int_equal(load(m, &plain, false, a, &err), E_OK);
    assert_int_equal(load(m, &ahead, false, b, &err), E_OK);
    for (int i = 0; i < 2; i++)
        assert_memory_equal(a[i], b[i], bytes);
    assert_memory_not_equal(a[0], a[1], bytes);
    assert_int_equal(load(m, &ahead, true, b, &err), E_FATAL);
    assert_string_equal(err.msg, "no more marks");
    model_close(m);
    for (int i = 0; i < 2; i++) {
        mem_free(a[i]);
        mem_free(b[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(late_copies_give_the_same_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
