/* Any bytes as an operator's filter, as a time, as a dead letter's run, source and payload:
 * understood, or refused with a text; and a message that is sent again is one object with the run
 * it goes to and an id. */
#include "engine/log.h"
#include "worker/commands/console.h"
#include "worker/job/envelope.h"
#include "worker/sink/dead_letters.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str bytes = {(const char *)data, size};
    struct letter_filter filter = {0};
    struct text run = {0}, message = {0}, header = {0};
    const struct envelope envelope = {
        .run = STR("main~1"), .batch_id = STR("b"), .id = STR("place/0/1")};
    struct err err = {0};
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    int rc = letter_filter_parse(&filter, bytes, &err);
    CHECK(rc == E_OK || (rc == E_USAGE && err.msg[0]));
    for (int i = 0; rc == E_OK && i < LETTER_FIELDS; i++)
        CHECK(!filter.fields[i].ptr || filter.fields[i].len > 0);
    CHECK(console_time_parse(bytes) >= -1);
    err = (struct err){0};
    rc = redrive_run(bytes, &run, &err);
    CHECK(rc == E_OK ? run.len >= 2 && run.len <= size + 2 : rc == E_JOB && err.msg[0]);
    err = (struct err){0};
    if (!envelope_header(bytes, "tranche-deadline", &header))
        CHECK(header.len == 0);
    rc = envelope_put(bytes, &envelope, &message, &err);
    CHECK(rc == E_OK || (rc == E_JOB && err.msg[0]));
    if (rc == E_OK) {
        json_t *doc = NULL;
        struct json_limits wider = json_limits_job;
        wider.bytes_max *= 8; /* what was written as it is may come back escaped */
        CHECK(json_parse(&doc, text_view(&message), "message", &wider, &err) == E_OK);
        CHECK(str_eq(json_str(json_object_get(doc, "run")), STR("main~1")));
        CHECK(str_eq(json_str(json_object_get(doc, "batch_id")), STR("b")));
        CHECK(json_object_get(doc, "id") || json_object_get(doc, "custom_id"));
        json_decref(doc);
    }
    text_close(&header);
    text_close(&run);
    text_close(&message);
    return 0;
}
