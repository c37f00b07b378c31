/* chat_template: renders a model folder's own Jinja chat template with a small interpreter.
 * The language is the subset that real templates use (ARCHITECTURE.md lists it), with the settings
 * of Hugging Face: trim_blocks, lstrip_blocks, loop controls, sandbox without mutation. What it
 * does not know is an error at open that names line and construct. Output equals Jinja2's.
 *
 * Templates are untrusted: steps, output bytes and recursion are limited; there is no I/O. */
#ifndef TRANCHE_ENGINE_CHAT_TEMPLATE_H
#define TRANCHE_ENGINE_CHAT_TEMPLATE_H

#include "engine/json.h"
#include "engine/tokenizer.h"

struct chat_template;

enum {
    CHAT_TEMPLATE_STEPS_MAX = 4000000,
    CHAT_TEMPLATE_OUTPUT_MAX = 16 << 20,
    CHAT_TEMPLATE_DEPTH_MAX = 64,
};

/* Compiles template text. `name` stands in messages ("chat_template.jinja"). Errors: E_FATAL with
 * "NAME: line 12: ..." The text is copied. */
int chat_template_compile(struct chat_template **out, struct str text, const char *name,
                          struct err *err) TR_MUSTCHECK;

/* Finds the template of a model folder: `override_path` when not NULL, else chat_template.jinja,
 * else tokenizer_config.json's chat_template (a string, or a list of {name, template} where
 * "default" is taken). *out is NULL with E_OK when the folder has none (chat requests then fail as
 * jobs). */
int chat_template_open(struct chat_template **out, const char *model_dir, const char *override_path,
                       struct err *err) TR_MUSTCHECK;
void chat_template_close(struct chat_template *t); /* NULL is legal */

/* sha256 of the template text, hex, for the config revision. Borrowed until close. */
const char *chat_template_sha256(const struct chat_template *t);

/* File that it stands in, "DIR/tokenizer_config.json: chat_template" where it is a field of one.
 * Borrowed until close. */
const char *chat_template_name(const struct chat_template *t);
int64_t chat_template_bytes(const struct chat_template *t); /* of its text */

/* The first of bos_token, eos_token, ... that the template names and the tokenizer lacks: it is
 * undefined there and renders as nothing, as in Hugging Face. NULL: none. A literal. */
const char *chat_template_missing_token(const struct chat_template *t, const struct tokenizer *tok);

struct chat_template_input {
    const json_t *messages; /* array of objects, as in the request */
    const json_t *tools;    /* array, or NULL: undefined stays None as in Hugging Face */
    const json_t
        *kwargs; /* chat_template_kwargs, or NULL; overrides every other variable but messages */
    bool add_generation_prompt;
    bool continue_final_message;       /* cut the render right behind the last message's content */
    const struct tokenizer *tokenizer; /* bos_token, eos_token, ...; NULL: these are undefined */
    int64_t date_ns; /* what strftime_now shows; 0: strftime_now is undefined, so templates
                        take their own fallback and the prompt is reproducible */
};

struct chat_template_output {
    struct tokenizer_piece *pieces; /* the text cut where message content begins and ends; the
                                       pieces' `plain` is true inside message contents */
    size_t n_pieces;
    struct str text; /* the whole render; the pieces point into it */
};
/* Renders. *out is owned by the caller until chat_template_output_free. Thread-safe on a shared
 * template. Errors: E_JOB, type "template_error" (raise_exception's own text included), or type
 * "template_limit". Content marking is exact for contents that reach the output by
 * concatenation, slicing, strip/trim, split and replace; where a filter would lose the mark (tojson
 * of a whole message), its whole output counts as content; so do keys of objects inside messages.
 * The roles of messages never do: the caller admits known roles only. continue_final_message
 * together with add_generation_prompt is E_JOB, as in Hugging Face. E_RETRY when memory for the
 * output is refused. */
int chat_template_render(const struct chat_template *t, const struct chat_template_input *in,
                         struct chat_template_output *out, struct err *err) TR_MUSTCHECK;
void chat_template_output_free(struct chat_template_output *out);

#endif
