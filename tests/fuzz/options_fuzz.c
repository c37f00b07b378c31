/* Fuzzes the config file's reader and, through it, every option's value. */
#include "worker/config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *argv[] = {(char *)"tranche", (char *)"run", NULL};
    struct config c;
    struct err err = {0};
    CHECK(config_open(&c, 2, argv, NULL, &err) == E_OK);
    int rc = config_file_parse(&c, (struct str){(const char *)data, size}, "file", &err);
    CHECK(rc == E_OK || (rc == E_USAGE && err.msg[0]));
    CHECK(config_int(&c, "slots") >= 0 && config_int(&c, "slots") <= 4096);
    CHECK(config_real(&c, "sim-fail-share") >= 0 && config_real(&c, "sim-fail-share") <= 1);
    config_close(&c);
    return 0;
}
