/* envelope: see envelope.h. */
#include "worker/job/envelope.h"

#include "worker/job/text.h"

static bool names_none(const json_t *value)
{
    return !value || json_is_null(value);
}

static int put(json_t *doc, const char *name, json_t *value, struct err *err)
{
    return json_object_set_new(doc, name, value) == 0
               ? E_OK
               : err_set(err, E_JOB, "%s: want UTF-8 for a JSON string", name);
}

static int put_text(json_t *doc, const char *name, struct str text, struct err *err)
{
    return text.ptr ? put(doc, name, json_stringn(text.ptr, text.len), err) : E_OK;
}

static int put_id(json_t *doc, struct str id, struct err *err)
{
    const char *name = job_id_field(doc);
    const json_t *given = json_object_get(doc, name);
    struct str s = names_none(given) ? id : json_str(given);
    if (names_none(given) && !id.ptr)
        return E_OK;
    if (s.len == 0 || s.len > JOB_ID_BYTES_MAX || memchr(s.ptr, 0, s.len))
        return err_set(err, E_JOB, "%s: want a string of 1 to %d bytes, found %s of %zu bytes",
                       name, JOB_ID_BYTES_MAX,
                       names_none(given) ? "a place" : json_type_name(given), s.len);
    return names_none(given) ? put_text(doc, name, id, err) : E_OK;
}

static int put_all(json_t *doc, const struct envelope *e, struct err *err)
{
    int rc = put_id(doc, e->id, err);
    if (rc >= 0)
        rc = put_text(doc, "run", e->run, err);
    if (rc >= 0)
        rc = put_text(doc, "batch_id", e->batch_id, err);
    if (rc >= 0 && e->deadline.ptr && names_none(json_object_get(doc, "deadline")))
        rc = put(doc, "deadline", job_header_deadline(e->deadline), err);
    return rc;
}

int envelope_put(struct str payload, const struct envelope *e, struct text *out, struct err *err)
{
    json_t *doc = NULL;
    struct err why = {0};
    if (json_parse(&doc, payload, "payload", &json_limits_job, &why) < 0 || !json_is_object(doc)) {
        json_decref(doc);
        return err_set(err, E_JOB, "%s", why.code ? why.msg : "the payload is no JSON object");
    }
    int rc = put_all(doc, e, err);
    char *text = rc < 0 ? NULL : json_dumps(doc, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(doc);
    if (rc < 0)
        return rc;
    text_reset(out);
    text_add(out, str_of(text ? text : ""));
    free(text);
    if (out->failed || out->len == 0)
        return err_set(err, E_FATAL, "no memory for a message");
    return out->len <= JOB_BYTES_MAX
               ? E_OK
               : err_set(err, E_JOB, "as a message it has %zu bytes, the limit is %d", out->len,
                         JOB_BYTES_MAX);
}

bool envelope_header(struct str source, const char *name, struct text *out)
{
    json_t *doc = NULL, *pair;
    struct err why = {0};
    struct str last = {NULL, 0};
    size_t i;
    if (!source.ptr || json_parse(&doc, source, "source", &json_limits_job, &why) < 0)
        return false;
    json_array_foreach(json_object_get(doc, "headers"), i, pair)
    {
        const json_t *value = json_array_get(pair, 1);
        if (str_eq(json_str(json_array_get(pair, 0)), str_of(name)) && json_is_string(value))
            last = json_str(value);
    }
    if (last.ptr)
        text_add(out, last);
    json_decref(doc);
    return last.ptr != NULL;
}
