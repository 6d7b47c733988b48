/* Finds runDir and dataDir in a network configuration.
 *
 * The Python plugin parses the configuration only if it holds one of a few words (cni/plugin/main.py, _DECIDING_KEYS).
 * So does this reader. It accepts a strict subset of JSON, and reports everything else as a case for Python: bytes
 * that are not ASCII, escapes in a key of the outermost object, repeated keys, numbers of more than 64 characters,
 * more than 64 levels. In such a case the directories are those that were read before; they only say where the program
 * is extracted.
 */
#include "launcher.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

enum { DEEPEST = 64, LONGEST_NUMBER = 64 };

struct cursor {
    const char *at, *end;
    bool doubt; /* Python has to read the configuration */
};

/* A JSON string without its quotes; `escaped` if it holds a backslash. */
struct text {
    const char *data;
    size_t size;
    bool escaped;
};

static bool holds(const char *data, size_t size, const char *word)
{
    size_t length = strlen(word);
    for (size_t at = 0; at + length <= size; at++)
        if (strncasecmp(data + at, word, length) == 0)
            return true;
    return false;
}

static bool may_decide(const char *data, size_t size)
{
    static const char *const words[] = {"rundir", "datadir", "overlayd", "autostart", "\\u"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (holds(data, size, words[i]))
            return true;
    return false;
}

static void skip_blanks(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r'))
        c->at++;
}

static bool take(struct cursor *c, char expected)
{
    if (c->at == c->end || *c->at != expected)
        return false;
    c->at++;
    return true;
}

static bool take_word(struct cursor *c, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return false;
    c->at += length;
    return true;
}

static bool take_escape(struct cursor *c)
{
    if (c->at == c->end)
        return false;
    char kind = *c->at++;
    if (kind != 'u')
        return kind != '\0' && strchr("\"\\/bfnrt", kind) != NULL;
    for (int i = 0; i < 4; i++, c->at++)
        if (c->at == c->end || !isxdigit((unsigned char)*c->at))
            return false;
    return true;
}

static bool take_string(struct cursor *c, struct text *text)
{
    if (!take(c, '"'))
        return false;
    text->data = c->at;
    text->escaped = false;
    while (c->at < c->end) {
        unsigned char byte = (unsigned char)*c->at++;
        if (byte == '"') {
            text->size = (size_t)(c->at - 1 - text->data);
            return true;
        }
        if (byte < 0x20)
            return false;
        if (byte >= 0x80)
            c->doubt = true; /* it may not be UTF-8, and some letters fold to ASCII ones */
        if (byte == '\\') {
            text->escaped = true;
            if (!take_escape(c))
                return false;
        }
    }
    return false;
}

static bool take_digits(struct cursor *c)
{
    const char *start = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        c->at++;
    return c->at > start;
}

static bool take_number(struct cursor *c)
{
    const char *start = c->at;
    (void)take(c, '-');
    if (!take(c, '0') && !take_digits(c))
        return false;
    if (take(c, '.') && !take_digits(c))
        return false;
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        c->at++;
        if (!take(c, '+'))
            (void)take(c, '-');
        if (!take_digits(c))
            return false;
    }
    return c->at - start <= LONGEST_NUMBER;
}

static bool take_value(struct cursor *c, int depth);

static bool take_array(struct cursor *c, int depth)
{
    skip_blanks(c);
    if (take(c, ']'))
        return true;
    do {
        if (!take_value(c, depth))
            return false;
        skip_blanks(c);
    } while (take(c, ','));
    return take(c, ']');
}

static bool take_object(struct cursor *c, int depth)
{
    skip_blanks(c);
    if (take(c, '}'))
        return true;
    do {
        struct text key;
        skip_blanks(c);
        if (!take_string(c, &key))
            return false;
        skip_blanks(c);
        if (!take(c, ':') || !take_value(c, depth))
            return false;
        skip_blanks(c);
    } while (take(c, ','));
    return take(c, '}');
}

static bool take_value(struct cursor *c, int depth)
{
    struct text text;
    skip_blanks(c);
    if (c->at == c->end || depth == DEEPEST)
        return false;
    switch (*c->at) {
    case '{':
        c->at++;
        return take_object(c, depth + 1);
    case '[':
        c->at++;
        return take_array(c, depth + 1);
    case '"':
        return take_string(c, &text);
    case 't':
        return take_word(c, "true");
    case 'f':
        return take_word(c, "false");
    case 'n':
        return take_word(c, "null");
    default:
        return take_number(c);
    }
}

static bool key_is(const struct text *key, const char *name)
{
    return key->size == strlen(name) && strncasecmp(key->data, name, key->size) == 0;
}

/* Whether the Python plugin takes the path as it is: absolute, normalised, at most `limit` bytes. */
static bool is_plain(const struct text *path, size_t limit)
{
    if (path->escaped || path->size == 0 || path->size > limit || path->data[0] != '/')
        return false;
    for (size_t i = 0; i < path->size; i++) {
        bool last = i + 1 == path->size;
        if (path->data[i] == '/' && (last || path->data[i + 1] == '/' || path->data[i + 1] == '.'))
            return false;
    }
    return true;
}

/* Read the value of runDir or dataDir: null and "" leave the default. */
static bool take_path(struct cursor *c, char *path, size_t limit)
{
    struct text text;
    skip_blanks(c);
    if (take_word(c, "null"))
        return true;
    if (c->at == c->end || *c->at != '"') {
        c->doubt = true;
        return take_value(c, 1);
    }
    if (!take_string(c, &text))
        return false;
    if (text.size != 0 && is_plain(&text, limit)) {
        memcpy(path, text.data, text.size);
        path[text.size] = '\0';
    } else if (text.size != 0) {
        c->doubt = true;
    }
    return true;
}

static bool take_boolean(struct cursor *c)
{
    skip_blanks(c);
    if (take_word(c, "true") || take_word(c, "false") || take_word(c, "null"))
        return true;
    c->doubt = true;
    return take_value(c, 1);
}

/* Read one key of the outermost object with its value. `seen` has a bit for each key that decides. */
static bool take_member(struct cursor *c, struct location *location, unsigned *seen)
{
    struct text key;
    skip_blanks(c);
    if (!take_string(c, &key))
        return false;
    skip_blanks(c);
    if (!take(c, ':'))
        return false;
    if (key.escaped || key_is(&key, "overlayd"))
        c->doubt = true; /* an escape may hide a key that decides; overlayd names another daemon */
    unsigned bit = key_is(&key, "runDir") ? 1 : key_is(&key, "dataDir") ? 2 : key_is(&key, "autostart") ? 4 : 0;
    if (bit & *seen)
        c->doubt = true; /* repeated */
    *seen |= bit;
    switch (bit) {
    case 1:
        return take_path(c, location->run_dir, RUN_DIR_LIMIT);
    case 2:
        return take_path(c, location->data_dir, DATA_DIR_LIMIT);
    case 4:
        return take_boolean(c);
    default:
        return take_value(c, 1);
    }
}

bool read_location(const char *stdin_data, size_t size, struct location *location)
{
    struct cursor c = {.at = stdin_data, .end = stdin_data + size};
    unsigned seen = 0;

    strcpy(location->run_dir, "/run/zlayer-cni");
    strcpy(location->data_dir, "/var/lib/zlayer-cni");
    if (!may_decide(stdin_data, size))
        return true;
    skip_blanks(&c);
    if (!take(&c, '{'))
        return false;
    do {
        if (!take_member(&c, location, &seen))
            return false;
        skip_blanks(&c);
    } while (take(&c, ','));
    if (!take(&c, '}'))
        return false;
    skip_blanks(&c);
    return c.at == c.end && !c.doubt;
}
