/* One pass of a decoder over rows of tokens, as a list of operations.
 *
 * A row is one token of one text. Keys and values lie in pages of 16 positions that belong to texts. Nothing that a row becomes depends
 * on which other rows are in the pass, in which order, or how many threads compute it.
 *
 * Operations that go row by row and follow each other are one stage; a product and attention are stages of their own. Threads take
 * pieces of a stage until none is left, and wait only for pieces that others have begun.
 */
#include "products.h"
#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#define PAGE 16
#define RUN 8           /* most rows of one text that attention takes together */
#define QUERIES 6       /* most queries whose products with one page are formed together */
#define ROWS_OF_PIECE 4 /* rows that a thread takes of a stage that goes row by row */
#define ROWS_TOGETHER 128
#define PIECE_BYTES (192 * 1024)

enum { EMBED, NORM, ROUND, LINEAR, ROTATE, HEAD_NORM, KEEP, ATTEND, GATE, SUM, TAKE_WANTED };
enum { PUT, ADD, GATED };

typedef struct {
    int32_t kind;
    int32_t from, to;       /* buffers */
    int32_t mode;           /* LINEAR: PUT, ADD, GATED; its input is rounded if the matrix is coded */
    int32_t activation;
    int32_t layer;
    int32_t num_heads;      /* ATTEND: queries; ROTATE, HEAD_NORM: heads that are changed */
    int32_t first;          /* first column: of heads; of what is kept; LINEAR: of its results */
    int32_t panel_step;     /* LINEAR: its results go to each such panel; 1: to all */
    int32_t adapter;        /* LINEAR: only rows with this adapter; -1: all rows */
    int32_t wanted;         /* whether it goes over rows whose logits are wanted */
    int32_t table;          /* ROTATE: which rotary table */
    int32_t window;         /* ATTEND: positions that are seen; 0: all */
    int32_t size;           /* EMBED, NORM, GATE, SUM: numbers of a row; ROTATE: numbers of a head that turn; KEEP: first column of values */
    float number;           /* NORM, HEAD_NORM: epsilon; ATTEND: scale; EMBED: factor */
    const Matrix *matrix;
    const float *vector;    /* NORM, HEAD_NORM: weights */
    const void *rows;       /* EMBED: a table of its own, bfloat16 or single precision, or NULL: the matrix's columns */
} Operation;

typedef struct {
    int32_t num_key_heads, head_size, num_layers;
    int32_t cache_kind;     /* F32 or BF16 */
    int32_t num_operations, embedding_kind;
    const Operation *operations;
    float **buffers;
    const int64_t *widths;  /* numbers of a row in each buffer */
} Decoder;

typedef struct {
    int64_t num_rows, num_wanted, num_runs;
    const int32_t *tokens, *positions;  /* [rows] */
    const int32_t *text_of;             /* [rows] */
    const int32_t *wanted;              /* [wanted] rows */
    const int32_t *run_starts;          /* [runs + 1] rows; a run is of one text */
    const int64_t *pages;               /* addresses of pages, text after text */
    const int64_t *first_page;          /* [texts] */
    const int32_t *adapter_rows;        /* rows, adapter after adapter */
    const int64_t *adapter_starts;      /* [adapters + 1] */
    const float *const *tables;         /* rotary tables [positions][2][size]: cosines, sines */
    RoundedGroup *rounded;              /* [rows][rounded_width] */
    int64_t rounded_width;
    float *scores;                      /* [threads][QUERIES][scores_width] */
    int64_t scores_width;
    float *logits;                      /* [wanted][logits_width] */
    int64_t logits_width;
    int32_t num_threads, unused;
} Pass;

typedef struct {
    const Operation *first;
    int32_t num_operations; /* more than one: they go row by row */
    int32_t panels_of_piece;
    int64_t num_rows, num_pieces;
} Stage;

/* ---- pages ------------------------------------------------------------------------------------------------------------
 * [layers][key heads][keys [head_size][16], values [16][head_size]] */

INLINE int64_t half_page(const Decoder *decoder) { return (int64_t)decoder->head_size * PAGE * (decoder->cache_kind == F32 ? 4 : 2); }

INLINE char *page_at(const Decoder *decoder, const Pass *pass, int text, int64_t page, int layer, int head) {
    char *address = (char *)pass->pages[pass->first_page[text] + page];
    return address + ((int64_t)layer * decoder->num_key_heads + head) * 2 * half_page(decoder);
}

/* ---- row by row ------------------------------------------------------------------------------------------------------- */

static void embed(const Decoder *decoder, const Operation *operation, int32_t token, float *to) {
    for (int64_t k = 0; k < operation->size; k++) {
        float number;
        if (!operation->rows) number = weight_at(operation->matrix, token, k);
        else if (decoder->embedding_kind == F32) number = ((const float *)operation->rows)[(int64_t)token * operation->size + k];
        else number = from_bf16(((const uint16_t *)operation->rows)[(int64_t)token * operation->size + k]);
        to[k] = number * operation->number;
    }
}

static void norm(const float *from, const float *weights, int64_t size, float epsilon, float *to) {
    floats squares = {};
    int64_t k = 0;
    for (; k + WIDTH <= size; k += WIDTH) squares += load(from + k) * load(from + k);
    float sum = sum_of(squares);
    for (; k < size; k++) sum += from[k] * from[k];
    float factor = 1.0f / sqrtf(sum / (float)size + epsilon);
    for (k = 0; k + WIDTH <= size; k += WIDTH) store(to + k, load(from + k) * factor * load(weights + k));
    for (; k < size; k++) to[k] = from[k] * factor * weights[k];
}

static void rotate(const Decoder *decoder, const Operation *operation, const float *table, float *row) {
    int size = operation->size, half = size / 2;
    const float *cosines = table, *sines = table + size;
    for (int head = 0; head < operation->num_heads; head++) {
        float *numbers = row + operation->first + (int64_t)head * decoder->head_size;
        for (int k = 0; k < half; k++) {
            float one = numbers[k], two = numbers[k + half];
            numbers[k] = one * cosines[k] - two * sines[k];
            numbers[k + half] = two * cosines[k + half] + one * sines[k + half];
        }
    }
}

static void keep(const Decoder *decoder, const Pass *pass, const Operation *operation, int64_t row, const float *from) {
    int size = decoder->head_size;
    int64_t position = pass->positions[row], lane = position % PAGE;
    const float *keys = from + operation->first, *values = from + operation->size;
    for (int head = 0; head < decoder->num_key_heads; head++, keys += size, values += size) {
        char *page = page_at(decoder, pass, pass->text_of[row], position / PAGE, operation->layer, head);
        char *value_page = page + half_page(decoder);
        if (decoder->cache_kind == F32) {
            for (int k = 0; k < size; k++) ((float *)page)[k * PAGE + lane] = keys[k];
            memcpy((float *)value_page + lane * size, values, 4 * size);
        } else {
            for (int k = 0; k < size; k++) ((uint16_t *)page)[k * PAGE + lane] = to_bf16(keys[k]);
            for (int k = 0; k < size; k++) ((uint16_t *)value_page)[lane * size + k] = to_bf16(values[k]);
        }
    }
}

static void gate(const Operation *operation, const float *from, int64_t panels, float *to) {
    for (int64_t panel = 0; panel < panels; panel++)
        for (int part = 0; part < PARTS; part++) {
            const float *both = from + panel * 2 * PANEL + part * WIDTH;
            store(to + panel * PANEL + part * WIDTH, activated(operation->activation, load(both)) * load(both + PANEL));
        }
}

static void of_row(const Decoder *decoder, const Pass *pass, const Operation *operation, int64_t row) {
    float *from = decoder->buffers[operation->from] + row * decoder->widths[operation->from];
    float *to = decoder->buffers[operation->to] + row * decoder->widths[operation->to];
    switch (operation->kind) {
    case EMBED: embed(decoder, operation, pass->tokens[row], to); break;
    case NORM: norm(from, operation->vector, operation->size, operation->number, to); break;
    case ROUND:
        round_row(from, operation->matrix->inputs, pass->rounded + row * pass->rounded_width);
        break;
    case HEAD_NORM:
        for (int head = 0; head < operation->num_heads; head++) {
            float *numbers = from + operation->first + (int64_t)head * decoder->head_size;
            norm(numbers, operation->vector, decoder->head_size, operation->number, numbers);
        }
        break;
    case ROTATE:
        rotate(decoder, operation, pass->tables[operation->table] + (int64_t)pass->positions[row] * 2 * operation->size, from);
        break;
    case KEEP: keep(decoder, pass, operation, row, from); break;
    case GATE: gate(operation, from, operation->size / PANEL, to); break;
    case SUM:
        for (int64_t k = 0; k < operation->size; k++) to[k] += from[k];
        break;
    case TAKE_WANTED:
        memcpy(to, decoder->buffers[operation->from] + pass->wanted[row] * decoder->widths[operation->from],
               4 * decoder->widths[operation->to]);
    }
}

/* ---- products --------------------------------------------------------------------------------------------------------- */

/* Inputs of a matrix as its kind wants them: which rows of them, and those that are computed together now. */
typedef struct {
    const char *numbers;
    int64_t bytes;        /* of one row */
    const int32_t *index; /* or NULL: all, in their order */
    int64_t begin, end;
} InputRows;

INLINE int64_t place_of(const InputRows *rows, int64_t row) { return rows->index ? rows->index[row] : row; }

/* Results in up to MOST_PANELS panels: [rows][MOST_PANELS * PANEL]. Several rows are multiplied with a stretch of the panels
 * before the next one is read. */
static void multiply(const InputRows *rows, int panels, const Matrix *matrix, int64_t first, float *results) {
    const int64_t number = rows->end - rows->begin, num_tiles = (number + MOST_ROWS - 1) / MOST_ROWS;
    const int at_once = panels_at_once((int)((number + num_tiles - 1) / num_tiles));
    const int64_t num_stretches = number == 1 ? 1 : (matrix->inputs + STRETCH - 1) / STRETCH, input_bytes = matrix->panel_bytes / matrix->inputs;
    const int64_t length = ((matrix->inputs + num_stretches - 1) / num_stretches + GROUP - 1) / GROUP * GROUP; /* of even sizes */
    for (int panel = 0, now; panel < panels; panel += now) {
        now = panels - panel < at_once ? panels - panel : at_once;
        for (int64_t begin = 0; begin < matrix->inputs; begin += length) {
            const int64_t end = begin + length < matrix->inputs ? begin + length : matrix->inputs;
            const int64_t to_next = end < matrix->inputs ? length * input_bytes : now * matrix->panel_bytes - begin * input_bytes;
            Stretch stretch = {begin, end, num_tiles > 1 ? to_next : NEAR_BYTES, num_tiles};
            for (int64_t tiles = num_tiles, row = 0; tiles > 0; tiles--) { /* of even sizes: few rows hide no latencies */
                const int num_rows = (int)((number - row + tiles - 1) / tiles);
                const void *inputs[MOST_ROWS];
                for (int each = 0; each < num_rows; each++)
                    inputs[each] = rows->numbers + place_of(rows, rows->begin + row + each) * rows->bytes;
                tile(num_rows, now, inputs, matrix, first + panel, &stretch, results + (row * MOST_PANELS + panel) * PANEL);
                row += num_rows;
                stretch.ahead += (end - begin) * input_bytes / num_tiles;
            }
        }
    }
}

/* Put a row's results where the operation says. */
static void deliver(const Operation *operation, const Matrix *matrix, const float *results, int64_t first, int panels, float *to, int64_t width) {
    if (operation->mode == GATED) { /* gates lie in even panels, what they open in odd ones */
        gate(operation, results, panels / 2, to + first / 2 * PANEL);
        return;
    }
    for (int panel = 0; panel < panels; panel++)
        for (int part = 0; part < PARTS; part++) {
            int64_t column = (first + panel) * operation->panel_step * PANEL + part * WIDTH;
            floats value = load(results + panel * PANEL + part * WIDTH);
            if (matrix->bias) value += load(matrix->bias + (first + panel) * PANEL + part * WIDTH);
            if (column + WIDTH <= width) store(to + column, operation->mode == ADD ? load(to + column) + value : value);
            else for (int lane = 0; lane < width - column; lane++) to[column + lane] = operation->mode == ADD ? to[column + lane] + value[lane] : value[lane];
        }
}

static void linear(const Decoder *decoder, const Pass *pass, const Stage *stage, int64_t piece) {
    const Operation *operation = stage->first;
    const Matrix *matrix = operation->matrix;
    const int to_logits = operation->to < 0;
    const int64_t to_width = to_logits ? pass->logits_width : decoder->widths[operation->to];
    float *to = (to_logits ? pass->logits : decoder->buffers[operation->to]) + operation->first;
    const int64_t begin = piece * stage->panels_of_piece, left = matrix->panels - begin;
    const int64_t end = begin + (left < stage->panels_of_piece ? left : stage->panels_of_piece);
    InputRows rows = {.numbers = (const char *)decoder->buffers[operation->from], .bytes = 4 * decoder->widths[operation->from]};
    if (is_coded(matrix)) {
        rows.numbers = (const char *)pass->rounded;
        rows.bytes = pass->rounded_width * (int64_t)sizeof(RoundedGroup);
    }
    if (operation->adapter >= 0) rows.index = pass->adapter_rows + pass->adapter_starts[operation->adapter];
    const int in_turn = stage->num_rows == 1 ? MOST_PANELS : 2; /* gates need two */
    float results[ROWS_TOGETHER * MOST_PANELS * PANEL];
    for (rows.begin = 0; rows.begin < stage->num_rows; rows.begin += ROWS_TOGETHER) {
        rows.end = stage->num_rows - rows.begin < ROWS_TOGETHER ? stage->num_rows : rows.begin + ROWS_TOGETHER;
        for (int64_t first = begin; first < end; first += in_turn) {
            const int panels = end - first < in_turn ? (int)(end - first) : in_turn;
            multiply(&rows, panels, matrix, first, results);
            for (int64_t row = rows.begin; row < rows.end; row++)
                deliver(operation, matrix, results + (row - rows.begin) * MOST_PANELS * PANEL, first, panels,
                        to + place_of(&rows, row) * to_width, to_width - operation->first);
        }
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------------- */

INLINE floats load_kept(int kind, const char *from, int64_t index) {
    return kind == F32 ? load((const float *)from + index) : load_bf16((const uint16_t *)from + index);
}

/* Scores of `queries` with the 16 positions of a page: each one chain over the head. */
INLINE void score_page(const int queries, const int kind, const float *const *query, int size, const char *keys, float scale, float **scores, int64_t at) {
    floats sums[QUERIES][PARTS];
#pragma GCC unroll 8
    for (int each = 0; each < queries; each++)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) sums[each][part] = (floats){};
    for (int k = 0; k < size; k++)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            floats key = load_kept(kind, keys, k * PAGE + part * WIDTH);
#pragma GCC unroll 8
            for (int each = 0; each < queries; each++) sums[each][part] += query[each][k] * key;
        }
#pragma GCC unroll 8
    for (int each = 0; each < queries; each++)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) store(scores[each] + at + part * WIDTH, sums[each][part] * scale);
}

/* Add to columns of the results what positions first..end of a page give. */
INLINE void add_values(const int queries, const int parts, const int kind, float **shares, int64_t at, int first, int end, const char *values, int size, int column, float **to) {
    floats sums[QUERIES][2];
#pragma GCC unroll 8
    for (int each = 0; each < queries; each++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) sums[each][part] = load(to[each] + column + part * WIDTH);
    for (int position = first; position < end; position++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            floats value = load_kept(kind, values, (int64_t)position * size + column + part * WIDTH);
#pragma GCC unroll 8
            for (int each = 0; each < queries; each++) sums[each][part] += shares[each][at + position] * value;
        }
#pragma GCC unroll 8
    for (int each = 0; each < queries; each++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) store(to[each] + column + part * WIDTH, sums[each][part]);
}

/* Scores of positions start..end become shares that add up to 1; others from `page_start` to `page_end` become 0, which changes no
 * sum. */
static void to_shares(float *scores, int64_t page_start, int64_t page_end, int64_t start, int64_t end) {
    for (int64_t at = page_start; at < start; at++) scores[at] = -INFINITY;
    for (int64_t at = end; at < page_end; at++) scores[at] = -INFINITY;
    floats most = all(-INFINITY);
    for (int64_t at = page_start; at < page_end; at += WIDTH) most = larger(load(scores + at), most);
    const float largest = largest_of(most);
    floats sums[PARTS] = {};
    for (int64_t at = page_start; at < page_end; at += PAGE)
        for (int part = 0; part < PARTS; part++) {
            floats power = exponential(load(scores + at + part * WIDTH) - largest);
            store(scores + at + part * WIDTH, power);
            sums[part] += power;
        }
    float sum = 0.0f;
    for (int part = 0; part < PARTS; part++) sum += sum_of(sums[part]);
    const float factor = 1.0f / sum;
    for (int64_t at = page_start; at < page_end; at += WIDTH) store(scores + at, load(scores + at) * factor);
}

INLINE void attend_queries(const int queries, const int kind, const Decoder *decoder, const Pass *pass, const Operation *operation, int head, const float *const *query, const int64_t *positions, int text, float *scratch, float **to) {
    const int size = decoder->head_size;
    float *scores[QUERIES];
    int64_t first = INT64_MAX, last = 0, starts[QUERIES];
    for (int each = 0; each < queries; each++) {
        scores[each] = scratch + each * pass->scores_width;
        starts[each] = operation->window && positions[each] + 1 > operation->window ? positions[each] + 1 - operation->window : 0;
        first = starts[each] < first ? starts[each] : first;
        last = positions[each] > last ? positions[each] : last;
        memset(to[each], 0, 4 * size);
    }
    const int64_t first_page = first / PAGE, end_page = last / PAGE + 1;
    for (int64_t page = first_page; page < end_page; page++)
        score_page(queries, kind, query, size, page_at(decoder, pass, text, page, operation->layer, head), operation->number, scores, page * PAGE);
    for (int each = 0; each < queries; each++)
        to_shares(scores[each], first_page * PAGE, end_page * PAGE, starts[each], positions[each] + 1);
    for (int64_t page = first_page; page < end_page; page++) {
        const char *values = page_at(decoder, pass, text, page, operation->layer, head) + half_page(decoder);
        const int64_t behind = last + 1 - page * PAGE, before = first - page * PAGE;
        const int begin = before > 0 ? (int)before : 0, end = behind < PAGE ? (int)behind : PAGE;
        int column = 0;
        for (; column + 2 * WIDTH <= size; column += 2 * WIDTH)
            add_values(queries, 2, kind, scores, page * PAGE, begin, end, values, size, column, to);
        for (; column + WIDTH <= size; column += WIDTH)
            add_values(queries, 1, kind, scores, page * PAGE, begin, end, values, size, column, to);
        for (; column < size; column++)
            for (int position = begin; position < end; position++)
                for (int each = 0; each < queries; each++) {
                    const int64_t index = (int64_t)position * size + column;
                    const float value = kind == F32 ? ((const float *)values)[index] : from_bf16(((const uint16_t *)values)[index]);
                    to[each][column] = fmaf(scores[each][page * PAGE + position], value, to[each][column]);
                }
    }
}

static void attend_some(int queries, const Decoder *decoder, const Pass *pass, const Operation *operation, int head, const float *const *query, const int64_t *positions, int text, float *scratch, float **to) {
#define OF(number, kind) attend_queries(number, kind, decoder, pass, operation, head, query, positions, text, scratch, to)
    if (decoder->cache_kind == F32) {
        switch (queries) {
        case 1: OF(1, F32); break;
        case 2: OF(2, F32); break;
        case 3: OF(3, F32); break;
        case 4: OF(4, F32); break;
        case 5: OF(5, F32); break;
        default: OF(6, F32);
        }
    } else {
        switch (queries) {
        case 1: OF(1, BF16); break;
        case 2: OF(2, BF16); break;
        case 3: OF(3, BF16); break;
        case 4: OF(4, BF16); break;
        case 5: OF(5, BF16); break;
        default: OF(6, BF16);
        }
    }
#undef OF
}

/* A piece is the queries of one run of rows that share a head of keys. */
static void attend(const Decoder *decoder, const Pass *pass, const Operation *operation, int64_t piece, int thread) {
    const int64_t run = piece / decoder->num_key_heads;
    const int head = (int)(piece % decoder->num_key_heads), sharing = operation->num_heads / decoder->num_key_heads;
    const int64_t begin = pass->run_starts[run], rows = pass->run_starts[run + 1] - begin;
    float *scratch = pass->scores + (int64_t)thread * QUERIES * pass->scores_width;
    for (int64_t first = 0; first < rows * sharing; first += QUERIES) {
        const int queries = rows * sharing - first < QUERIES ? (int)(rows * sharing - first) : QUERIES;
        const float *query[QUERIES];
        float *to[QUERIES];
        int64_t positions[QUERIES];
        for (int each = 0; each < queries; each++) {
            const int64_t row = begin + (first + each) / sharing;
            const int64_t own = head * sharing + (first + each) % sharing;
            query[each] = decoder->buffers[operation->from] + row * decoder->widths[operation->from] + own * decoder->head_size;
            to[each] = decoder->buffers[operation->to] + row * decoder->widths[operation->to] + own * decoder->head_size;
            positions[each] = pass->positions[row];
        }
        attend_some(queries, decoder, pass, operation, head, query, positions, pass->text_of[begin], scratch, to);
    }
}

/* ---- stages ----------------------------------------------------------------------------------------------------------- */

static int goes_by_rows(const Operation *operation) { return operation->kind != LINEAR && operation->kind != ATTEND; }

static int64_t rows_of(const Pass *pass, const Operation *operation) {
    if (operation->kind == LINEAR && operation->adapter >= 0)
        return pass->adapter_starts[operation->adapter + 1] - pass->adapter_starts[operation->adapter];
    return operation->wanted ? pass->num_wanted : pass->num_rows;
}

/* The next stage from `first` on; how many operations it takes. */
static int next_stage(const Decoder *decoder, const Pass *pass, int first, Stage *stage) {
    const Operation *operation = decoder->operations + first;
    stage->first = operation;
    stage->num_operations = 1;
    stage->num_rows = rows_of(pass, operation);
    stage->panels_of_piece = 0;
    if (operation->kind == ATTEND) stage->num_pieces = pass->num_runs * decoder->num_key_heads;
    else if (operation->kind == LINEAR) {
        const Matrix *matrix = operation->matrix;
        int64_t panels = PIECE_BYTES / matrix->panel_bytes, fair = matrix->panels / (4 * pass->num_threads);
        panels = panels < fair ? panels : fair;
        panels = panels < MOST_PANELS ? MOST_PANELS : panels / MOST_PANELS * MOST_PANELS;
        if (pass->num_threads == 1 && stage->num_rows <= MOST_ROWS) panels = matrix->panels;
        stage->panels_of_piece = (int32_t)panels;
        stage->num_pieces = (matrix->panels + panels - 1) / panels;
    } else {
        while (first + stage->num_operations < decoder->num_operations) {
            const Operation *next = operation + stage->num_operations;
            if (!goes_by_rows(next) || next->wanted != operation->wanted) break;
            stage->num_operations++;
        }
        stage->num_pieces = (stage->num_rows + ROWS_OF_PIECE - 1) / ROWS_OF_PIECE;
    }
    if (stage->num_rows == 0) stage->num_pieces = 0;
    return stage->num_operations;
}

static void do_piece(const Decoder *decoder, const Pass *pass, const Stage *stage, int64_t piece, int thread) {
    if (stage->first->kind == LINEAR) linear(decoder, pass, stage, piece);
    else if (stage->first->kind == ATTEND) attend(decoder, pass, stage->first, piece, thread);
    else {
        int64_t end = (piece + 1) * ROWS_OF_PIECE < stage->num_rows ? (piece + 1) * ROWS_OF_PIECE : stage->num_rows;
        for (int64_t row = piece * ROWS_OF_PIECE; row < end; row++)
            for (int each = 0; each < stage->num_operations; each++) of_row(decoder, pass, stage->first + each, row);
    }
}

/* How far the threads are in each stage: pieces begun, and pieces done. On lines of their own. */
typedef struct {
    _Alignas(64) int64_t begun;
    _Alignas(64) int64_t done;
} Progress;

static void await(const int64_t *done, int64_t wanted) {
    for (int round = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < wanted; round++) {
        if (round < 2000) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else sched_yield(); /* another program has the core on which the piece is computed */
    }
}

/* Compute a pass. Returns 0, or 1 where there is no memory for its stages. */
int eft_pass(const Decoder *decoder, const Pass *pass) {
    Stage *stages = malloc(sizeof(Stage) * decoder->num_operations);
    Progress *progress = NULL;
    if (!stages) return 1;
    int num_stages = 0;
    for (int first = 0; first < decoder->num_operations;) first += next_stage(decoder, pass, first, stages + num_stages++);
    if (pass->num_threads == 1) {
        for (int stage = 0; stage < num_stages; stage++)
            for (int64_t piece = 0; piece < stages[stage].num_pieces; piece++) do_piece(decoder, pass, stages + stage, piece, 0);
    } else {
        progress = aligned_alloc(64, sizeof(Progress) * num_stages);
        if (!progress) {
            free(stages);
            return 1;
        }
        memset(progress, 0, sizeof(Progress) * num_stages);
#pragma omp parallel num_threads(pass->num_threads)
        {
            const int thread = omp_get_thread_num();
            for (int stage = 0; stage < num_stages; stage++) {
                const int64_t num_pieces = stages[stage].num_pieces;
                int64_t piece;
                while ((piece = __atomic_fetch_add(&progress[stage].begun, 1, __ATOMIC_RELAXED)) < num_pieces) {
                    do_piece(decoder, pass, stages + stage, piece, thread);
                    __atomic_fetch_add(&progress[stage].done, 1, __ATOMIC_ACQ_REL);
                }
                await(&progress[stage].done, num_pieces);
            }
        }
    }
    free(progress);
    free(stages);
    return 0;
}

/* Rows of single precision [rows][inputs] times a matrix, for trials and for layers of other models: [rows][outputs]. */
int eft_product(const Matrix *matrix, const float *rows, int64_t num_rows, int64_t outputs, float *to, int num_threads) {
    float *buffers[1] = {(float *)rows};
    int64_t widths[1] = {matrix->inputs}, groups = matrix->inputs / GROUP;
    RoundedGroup *rounded = NULL;
    if (is_coded(matrix)) {
        rounded = malloc(sizeof(RoundedGroup) * groups * num_rows);
        if (!rounded) return 1;
    }
    Operation operations[2] = {
        {.kind = ROUND, .matrix = matrix, .adapter = -1},
        {.kind = LINEAR, .to = -1, .panel_step = 1, .adapter = -1, .matrix = matrix},
    };
    Decoder decoder = {.num_operations = rounded ? 2 : 1, .operations = operations + (rounded ? 0 : 1), .buffers = buffers, .widths = widths};
    Pass pass = {.num_rows = num_rows, .rounded = rounded, .rounded_width = groups, .logits = to, .logits_width = outputs, .num_threads = num_threads};
    int failed = eft_pass(&decoder, &pass);
    free(rounded);
    return failed;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

/* Put columns of a matrix into panels: `numbers` [columns][inputs] of its kind, to panels from `panel` on, `step` apart. */
void eft_pack(const void *numbers, int64_t columns, int64_t inputs, const Matrix *matrix, int64_t panel, int64_t step) {
#pragma omp parallel for
    for (int64_t own = 0; own < (columns + PANEL - 1) / PANEL; own++) {
        char *to = (char *)matrix->numbers + (panel + own * step) * matrix->panel_bytes;
        memset(to, 0, matrix->panel_bytes);
        for (int64_t lane = 0; lane < PANEL && own * PANEL + lane < columns; lane++) {
            const int64_t from = (own * PANEL + lane) * inputs;
            for (int64_t k = 0; k < inputs; k++) {
                if (matrix->kind == F32) ((float *)to)[k * PANEL + lane] = ((const float *)numbers)[from + k];
                else ((uint16_t *)to)[(k / 2 * PANEL + lane) * 2 + k % 2] = ((const uint16_t *)numbers)[from + k];
            }
        }
    }
}

/* The same for codes: `codes` [columns][padded inputs] bytes, `scales` and `offsets` [columns][groups] bfloat16. */
void eft_pack_codes(const uint8_t *codes, const uint16_t *scales, const uint16_t *offsets, int64_t columns, const Matrix *matrix, int64_t panel, int64_t step) {
    const int64_t groups = matrix->inputs / GROUP, group_bytes = matrix->kind == INT8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;
#pragma omp parallel for
    for (int64_t own = 0; own < (columns + PANEL - 1) / PANEL; own++) {
        char *to = (char *)matrix->numbers + (panel + own * step) * matrix->panel_bytes;
        memset(to, 0, matrix->panel_bytes);
        for (int64_t lane = 0; lane < PANEL && own * PANEL + lane < columns; lane++)
            for (int64_t group = 0; group < groups; group++) {
                const int64_t column = own * PANEL + lane;
                const uint8_t *from = codes + column * matrix->inputs + group * GROUP;
                char *in = to + group * group_bytes;
                if (matrix->kind == INT8) {
                    ((uint16_t *)in)[lane] = scales[column * groups + group];
                    for (int k = 0; k < GROUP; k++) ((uint8_t *)(in + 32))[k / 2 * 32 + lane * 2 + k % 2] = from[k];
                } else {
                    ((uint16_t *)in)[lane] = scales[column * groups + group];
                    ((uint16_t *)in)[16 + lane] = offsets[column * groups + group];
                    for (int k = 0; k < GROUP; k++)
                        ((uint8_t *)(in + 64))[k / 4 * 32 + lane * 2 + k % 2] |= (uint8_t)(from[k] << (k / 2 % 2 * 4));
                }
            }
    }
}

/* The matrix's numbers again: [columns][inputs], of single precision or bfloat16. */
void eft_unpack(const Matrix *matrix, int64_t columns, int64_t inputs, int64_t panel, int64_t step, int to_kind, void *to) {
#pragma omp parallel for
    for (int64_t column = 0; column < columns; column++) {
        const int64_t packed = (panel + column / PANEL * step) * PANEL + column % PANEL;
        for (int64_t k = 0; k < inputs; k++) {
            const float number = weight_at(matrix, packed, k);
            if (to_kind == F32) ((float *)to)[column * inputs + k] = number;
            else ((uint16_t *)to)[column * inputs + k] = to_bf16(number);
        }
    }
}
