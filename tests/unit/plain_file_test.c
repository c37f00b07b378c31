/* plain_file: leases of others are waited for, FIFOs are not. The files that a model's folder is
 * opened by are in open_model_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>

#include "engine/plain_file.h"
#include "tests/unit/lease_holder.h"
#include "tests/unit/models_root.h"
#include "worker/model_hash.h"

static void write_weights(const char *name, char *path, size_t cap)
{
    snprintf(path, cap, "%s/%s", root, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs("weights", f);
    assert_int_equal(fclose(f), 0);
}

static void a_lease_is_waited_for(void **state)
{
    (void)state;
    char path[64], text[8] = "";
    write_weights("a.safetensors", path, sizeof path);
    int dir = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    pid_t holder = lease_take(path);
    int fd = plain_file_open(dir, "a.safetensors");
    assert_true(fd >= 0);
    assert_int_equal(read(fd, text, sizeof text), 7);
    assert_string_equal(text, "weights");
    close(fd);
    assert_true(lease_given_up(holder));
    close(dir);
    unlink(path);
}

static void weights_are_hashed_behind_a_lease(void **state)
{
    (void)state;
    char path[64], hex[2][65];
    bool stop = false;
    struct err err = {0};
    write_weights("a.safetensors", path, sizeof path);
    for (int i = 0; i < 2; i++) {
        pid_t holder = i ? lease_take(path) : 0;
        if (model_hash_compute(root, hex[i], &stop, &err) != E_OK)
            fail_msg("%s", err.msg);
        assert_true(!holder || lease_given_up(holder));
    }
    assert_string_equal(hex[0], hex[1]);
    for (int i = 0; i < 2; i++) {
        pid_t holder = i ? lease_take(path) : 0;
        if (model_mark(root, hex[i], &err) != E_OK)
            fail_msg("%s", err.msg);
        assert_true(!holder || lease_given_up(holder));
    }
    assert_string_equal(hex[0], hex[1]);
    unlink(path);
}

static void other_files_open_as_they_do(void **state)
{
    (void)state;
    char path[64];
    struct stat is;
    snprintf(path, sizeof path, "%s/fifo", root);
    assert_int_equal(plain_file_open(AT_FDCWD, path), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(mkfifo(path, 0600), 0);
    alarm(20); /* ends the test where it waits */
    int fd = plain_file_open(AT_FDCWD, path);
    alarm(0);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &is), 0);
    assert_true(S_ISFIFO(is.st_mode));
    close(fd);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lease_is_waited_for),
        cmocka_unit_test(weights_are_hashed_behind_a_lease),
        cmocka_unit_test(other_files_open_as_they_do),
    };
    return cmocka_run_group_tests(tests, models_root_make, models_root_remove);
}
