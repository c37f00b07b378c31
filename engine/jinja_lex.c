/* jinja_lex: see jinja_lex.h. Literals are read in jinja_literal.c. */
#include "engine/jinja_lex.h"

#include <stdio.h>

#include "engine/jinja_literal.h"
#include "engine/jinja_text.h"

struct lexer {
    const struct jinja_source *source;
    struct jinja_text text; /* newlines normalised, the last one dropped */
    size_t at;
    size_t counted; /* `line` is right for this offset */
    int line;
    bool line_starting; /* the token before ended with a newline */
    char closers[64];   /* brackets that are open inside the current tag */
    int n_closers;
    struct jinja_token *tokens;
    size_t n, cap;
};

int jinja_bad(const struct jinja_source *source, int line, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(source->err, E_FATAL, "%s: line %d: %s", source->name, line, text);
}

static int line_at(struct lexer *lx, size_t at)
{
    for (; lx->counted < at; lx->counted++)
        lx->line += lx->text.ptr[lx->counted] == '\n';
    return lx->line;
}

static int token_add(struct lexer *lx, struct jinja_token token)
{
    if (lx->n == lx->cap) {
        size_t cap = TR_MAX(lx->cap * 2, (size_t)64);
        struct jinja_token *tokens = jinja_heap_object(lx->source->heap, cap * sizeof *tokens);
        if (!tokens)
            return jinja_bad(lx->source, token.line, "template too large: tokens do not fit");
        if (lx->n)
            memcpy(tokens, lx->tokens, lx->n * sizeof *tokens);
        lx->tokens = tokens;
        lx->cap = cap;
    }
    lx->tokens[lx->n++] = token;
    return E_OK;
}

static int token_text(struct lexer *lx, enum jinja_token_kind kind, size_t from, size_t to)
{
    return token_add(lx, (struct jinja_token){.kind = kind,
                                              .line = line_at(lx, from),
                                              .text = {lx->text.ptr + from, to - from}});
}

static bool is_at(const struct lexer *lx, size_t at, const char *literal)
{
    size_t n = strlen(literal);
    return at <= lx->text.len && lx->text.len - at >= n &&
           memcmp(lx->text.ptr + at, literal, n) == 0;
}

static size_t skip_space(const struct lexer *lx, size_t at)
{
    while (at < lx->text.len && jinja_is_space(jinja_text_char(lx->text, at)))
        at = jinja_text_next(lx->text, at);
    return at;
}

static char sign_at(const struct lexer *lx, size_t at)
{
    char c = at < lx->text.len ? lx->text.ptr[at] : '\0';
    return c == '-' || c == '+' ? c : '\0';
}

/* The end of a tag at `at`: "CLOSE", "-CLOSE" and the space behind it, "+CLOSE" where `plus`;
 * a plain CLOSE takes one newline with it where `trim`. 0 when there is none. */
static size_t tag_end(const struct lexer *lx, size_t at, const char *close, bool plus, bool trim)
{
    char sign = sign_at(lx, at);
    if (sign == '-')
        return is_at(lx, at + 1, close) ? skip_space(lx, at + 3) : 0;
    if (sign == '+')
        return plus && is_at(lx, at + 1, close) ? at + 3 : 0;
    if (!is_at(lx, at, close))
        return 0;
    return at + 2 + (trim && is_at(lx, at + 2, "\n"));
}

/* Data before a tag, after what the tag's own sign and lstrip_blocks take away. */
static int add_data(struct lexer *lx, size_t from, size_t to, char sign, bool print)
{
    struct jinja_text data = jinja_cut(lx->text, from, to);
    if (sign == '-') {
        to = from + jinja_text_strip(data, NULL, JINJA_RIGHT).len;
    } else if (sign != '+' && !print) {
        size_t last = data.len;
        while (last > 0 && data.ptr[last - 1] != '\n')
            last--;
        struct jinja_text tail = jinja_cut(data, last, data.len);
        if ((last > 0 || lx->line_starting) && jinja_text_strip(tail, NULL, JINJA_LEFT).len == 0)
            to = from + last;
    }
    return to > from ? token_text(lx, TOKEN_DATA, from, to) : E_OK;
}

static int lex_comment(struct lexer *lx, size_t open)
{
    size_t at = open + 2 + (sign_at(lx, open + 2) != '\0');
    for (; at < lx->text.len; at++) {
        size_t end = tag_end(lx, at, "#}", true, true);
        if (end) {
            lx->line_starting = lx->text.ptr[end - 1] == '\n';
            lx->at = end;
            return E_OK;
        }
    }
    return jinja_bad(lx->source, line_at(lx, open), "comment without end: {#");
}

/* {% endraw %} with its signs and trimming; 0 when there is none at `at`. */
static size_t raw_end(const struct lexer *lx, size_t at, char *sign)
{
    if (!is_at(lx, at, "{%"))
        return 0;
    *sign = sign_at(lx, at + 2);
    at = skip_space(lx, at + 2 + (*sign != '\0'));
    if (!is_at(lx, at, "endraw"))
        return 0;
    return tag_end(lx, skip_space(lx, at + 6), "%}", true, true);
}

static int lex_raw(struct lexer *lx, size_t open, size_t from)
{
    lx->line_starting = lx->text.ptr[from - 1] == '\n';
    for (size_t at = from; at < lx->text.len; at++) {
        char sign;
        size_t end = raw_end(lx, at, &sign);
        if (end) {
            if (add_data(lx, from, at, sign, false) < 0)
                return E_FATAL;
            lx->line_starting = lx->text.ptr[end - 1] == '\n';
            lx->at = end;
            return E_OK;
        }
    }
    return jinja_bad(lx->source, line_at(lx, open), "raw block without end: {%% raw %%}");
}

/* Behind "{% raw" with its end, or 0. Unlike other blocks it takes no newline with it. */
static size_t raw_begin(const struct lexer *lx, size_t at)
{
    at = skip_space(lx, at);
    if (!is_at(lx, at, "raw"))
        return 0;
    return tag_end(lx, skip_space(lx, at + 3), "%}", false, false);
}

static int lex_operator(struct lexer *lx)
{
    static const struct {
        const char *text;
        enum jinja_token_kind kind;
    } operators[] = {
        {"**", TOKEN_POW},   {"//", TOKEN_FLOORDIV}, {"==", TOKEN_EQ},      {"!=", TOKEN_NE},
        {">=", TOKEN_GE},    {"<=", TOKEN_LE},       {"+", TOKEN_ADD},      {"-", TOKEN_SUB},
        {"*", TOKEN_MUL},    {"/", TOKEN_DIV},       {"%", TOKEN_MOD},      {"~", TOKEN_TILDE},
        {">", TOKEN_GT},     {"<", TOKEN_LT},        {"=", TOKEN_ASSIGN},   {".", TOKEN_DOT},
        {":", TOKEN_COLON},  {"|", TOKEN_PIPE},      {",", TOKEN_COMMA},    {";", TOKEN_SEMICOLON},
        {"(", TOKEN_LPAREN}, {")", TOKEN_RPAREN},    {"[", TOKEN_LBRACKET}, {"]", TOKEN_RBRACKET},
        {"{", TOKEN_LBRACE}, {"}", TOKEN_RBRACE},
    };
    size_t i = 0;
    while (i < TR_COUNT(operators) && !is_at(lx, lx->at, operators[i].text))
        i++;
    int line = line_at(lx, lx->at);
    if (i == TR_COUNT(operators)) {
        size_t next = jinja_text_next(lx->text, lx->at);
        return jinja_bad(lx->source, line, "unexpected character '%.*s'", (int)(next - lx->at),
                         lx->text.ptr + lx->at);
    }
    char c = *operators[i].text;
    if (c == '(' || c == '[' || c == '{') {
        if (lx->n_closers == (int)sizeof lx->closers)
            return jinja_bad(lx->source, line, "brackets nested deeper than %zu",
                             sizeof lx->closers);
        lx->closers[lx->n_closers++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (lx->n_closers == 0 || lx->closers[--lx->n_closers] != c)
            return jinja_bad(lx->source, line, "unexpected '%c'", c);
    }
    size_t from = lx->at;
    lx->at += strlen(operators[i].text);
    return token_text(lx, operators[i].kind, from, lx->at);
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static int lex_inside(struct lexer *lx)
{
    const char *ptr = lx->text.ptr;
    size_t from = lx->at;
    char c = ptr[from];
    struct jinja_token token = {.line = line_at(lx, from)};
    if (c >= '0' && c <= '9') {
        bool after_dot = from > 0 && ptr[from - 1] == '.';
        if (jinja_read_number(lx->source, lx->text, &lx->at, after_dot, &token) < 0)
            return E_FATAL;
        return token_add(lx, token);
    }
    if (is_word(c)) {
        while (lx->at < lx->text.len && is_word(ptr[lx->at]))
            lx->at++;
        return token_text(lx, TOKEN_NAME, from, lx->at);
    }
    if (c == '\'' || c == '"') {
        if (jinja_read_string(lx->source, lx->text, &lx->at, &token) < 0)
            return E_FATAL;
        return token_add(lx, token);
    }
    return lex_operator(lx);
}

static int lex_tag(struct lexer *lx, bool print)
{
    const char *close = print ? "}}" : "%}";
    int line = line_at(lx, lx->at);
    lx->n_closers = 0;
    for (;;) {
        lx->at = skip_space(lx, lx->at);
        if (lx->at >= lx->text.len)
            return jinja_bad(lx->source, line, "tag without end: %s", print ? "{{" : "{%");
        size_t end = lx->n_closers ? 0 : tag_end(lx, lx->at, close, !print, !print);
        if (end) {
            size_t from = lx->at;
            lx->at = end;
            lx->line_starting = lx->text.ptr[end - 1] == '\n';
            return token_text(lx, print ? TOKEN_PRINT_END : TOKEN_BLOCK_END, from, end);
        }
        if (lex_inside(lx) < 0)
            return E_FATAL;
    }
}

/* Data up to the next tag, then the tag. */
static int lex_root(struct lexer *lx)
{
    size_t from = lx->at, at = from;
    while (at < lx->text.len &&
           !(is_at(lx, at, "{{") || is_at(lx, at, "{%") || is_at(lx, at, "{#")))
        at++;
    if (at >= lx->text.len) {
        lx->at = lx->text.len;
        return from < at ? token_text(lx, TOKEN_DATA, from, at) : E_OK;
    }
    char kind = lx->text.ptr[at + 1], sign = sign_at(lx, at + 2);
    size_t inside = at + 2 + (sign != '\0');
    if (add_data(lx, from, at, sign, kind == '{') < 0)
        return E_FATAL;
    if (kind == '#')
        return lex_comment(lx, at);
    size_t raw = kind == '%' ? raw_begin(lx, inside) : 0;
    if (raw)
        return lex_raw(lx, at, raw);
    if (token_text(lx, kind == '{' ? TOKEN_PRINT_BEGIN : TOKEN_BLOCK_BEGIN, at, inside) < 0)
        return E_FATAL;
    lx->at = inside;
    return lex_tag(lx, kind == '{');
}

/* \r\n and \r become \n; one newline at the very end goes (keep_trailing_newline is off). */
static int normalise(const struct jinja_source *source, struct str text, struct jinja_text *out)
{
    char *buf = jinja_heap_bytes(source->heap, text.len + 1);
    size_t n = 0;
    if (!buf)
        return jinja_bad(source, 1, "template too large: %zu bytes", text.len);
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '\r' && i + 1 < text.len && text.ptr[i + 1] == '\n')
            continue;
        buf[n++] = c == '\r' ? '\n' : c;
    }
    if (n && buf[n - 1] == '\n')
        n--;
    buf[n] = '\0';
    *out = jinja_plain((struct str){buf, n});
    return E_OK;
}

int jinja_lex(const struct jinja_source *source, struct str text, struct jinja_token **out,
              size_t *n_out)
{
    struct lexer lx = {.source = source, .line = 1, .line_starting = true};
    if (normalise(source, text, &lx.text) < 0)
        return E_FATAL;
    while (lx.at < lx.text.len)
        if (lex_root(&lx) < 0)
            return E_FATAL;
    if (token_text(&lx, TOKEN_END, lx.text.len, lx.text.len) < 0)
        return E_FATAL;
    *out = lx.tokens;
    *n_out = lx.n;
    return E_OK;
}
