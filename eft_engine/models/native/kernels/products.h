/* Rows times packed matrices.
 *
 * A matrix lies in panels of 16 columns; inside a panel come the inputs in their order. How many rows are multiplied at once, and
 * by which thread, changes no bit of any row.
 */
#ifndef EFT_PRODUCTS_H
#define EFT_PRODUCTS_H

#include "vectors.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { F32, BF16, INT8, INT4 };

#define GROUP 32 /* inputs that share a scale, in weights that are codes and in the rows multiplied with them */
#define MOST_ROWS 5
#define MOST_PANELS 4

typedef struct {
    const void *numbers;  /* panel after panel */
    const float *bias;    /* [panels * 16], or NULL */
    int64_t inputs;       /* padded with zeros: a multiple of GROUP where they are codes, of 2 where they are not */
    int64_t panels;
    int64_t panel_bytes;
    int32_t kind;
    int32_t unused;
} Matrix;

/* Inputs from `begin` to before `end`; later stretches go on with the sums of earlier ones. Memory is asked for in advance, from so
 * many bytes `ahead` on: close by where all rows are multiplied at once. Where they take turns, each turn asks for its share of the
 * next stretch, `turns` times slower than it goes: asked for in the first turn, memory would be idle in all others. */
typedef struct { int64_t begin, end, ahead, turns; } Stretch;
#define STRETCH 1024 /* of several rows: what all of them are multiplied with stays in the nearest caches */
#define NEAR_BYTES 4096

INLINE int is_coded(const Matrix *matrix) { return matrix->kind == INT8 || matrix->kind == INT4; }

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

/* Add products of one input with the weights of some panels. A row's input is used for all of them at once: kept for later, the
 * inputs of six rows would not fit the registers beside the sums. */
INLINE void add_input(const int rows, const int parts, const void *const *from, int64_t k, const floats *weights, floats (*sums)[MOST_PANELS * PARTS]) {
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        floats input = all(((const float *)from[row])[k]);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) sums[row][part] += input * weights[part];
    }
}

/* Words of a panel's columns: one input of single precision, or two of bfloat16. */
#define LINE (4 * PANEL)

INLINE void tile_f32(const int rows, const int panels, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, floats (*sums)[MOST_PANELS * PARTS]) {
    const int parts = panels * PARTS;
    const char *line = (const char *)matrix->numbers + first * matrix->panel_bytes + stretch->begin * LINE;
    const char *ask = line + stretch->ahead;
    const int64_t step = LINE / stretch->turns;
    for (int64_t k = stretch->begin; k < stretch->end; k++, line += LINE, ask += step) {
        floats weights[MOST_PANELS * PARTS];
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            const char *at = line + part / PARTS * matrix->panel_bytes + part % PARTS * sizeof(floats);
            if (part % PARTS == 0) __builtin_prefetch(ask + part / PARTS * matrix->panel_bytes);
            weights[part] = load((const float *)at);
            if (rows == 1) add_input(1, 1, from, k, weights + part, (floats(*)[MOST_PANELS * PARTS])(sums[0] + part));
        }
        if (rows > 1) add_input(rows, parts, from, k, weights, sums);
    }
}

/* A word holds two inputs of a column: the even one below, the odd one above. */
INLINE void tile_bf16(const int rows, const int panels, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, floats (*sums)[MOST_PANELS * PARTS]) {
    const int parts = panels * PARTS;
    const char *line = (const char *)matrix->numbers + first * matrix->panel_bytes + stretch->begin / 2 * LINE;
    const char *ask = line + stretch->ahead;
    const int64_t step = LINE / stretch->turns;
    for (int64_t k = stretch->begin; k < stretch->end; k += 2, line += LINE, ask += step) {
        words both[MOST_PANELS * PARTS];
        floats weights[MOST_PANELS * PARTS];
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            const char *at = line + part / PARTS * matrix->panel_bytes + part % PARTS * sizeof(floats);
            if (part % PARTS == 0) __builtin_prefetch(ask + part / PARTS * matrix->panel_bytes);
            both[part] = *(const words_at *)at;
            weights[part] = (floats)(both[part] << 16);
            if (rows == 1) {
                floats odd = (floats)(both[part] & 0xffff0000u);
                add_input(1, 1, from, k, weights + part, (floats(*)[MOST_PANELS * PARTS])(sums[0] + part));
                add_input(1, 1, from, k + 1, &odd, (floats(*)[MOST_PANELS * PARTS])(sums[0] + part));
            }
        }
        if (rows == 1) continue;
        add_input(rows, parts, from, k, weights, sums);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) weights[part] = (floats)(both[part] & 0xffff0000u);
        add_input(rows, parts, from, k + 1, weights, sums);
    }
}

INLINE void tile_numbers(const int rows, const int panels, const int kind, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, float *to) {
    floats sums[MOST_ROWS][MOST_PANELS * PARTS];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int part = 0; part < panels * PARTS; part++)
            sums[row][part] = stretch->begin ? load(to + (row * MOST_PANELS * PARTS + part) * WIDTH) : (floats){};
    if (kind == F32) tile_f32(rows, panels, from, matrix, first, stretch, sums);
    else tile_bf16(rows, panels, from, matrix, first, stretch, sums);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 8
        for (int part = 0; part < panels * PARTS; part++) store(to + (row * MOST_PANELS * PARTS + part) * WIDTH, sums[row][part]);
}

/* ---- codes --------------------------------------------------------------------------------------------------------
 *
 * A weight is scale * code, and with four bits scale * code + offset. A row is rounded to 16 bits, by the largest number of each
 * group. Sums of a group are whole numbers, and exact.
 *
 * In a panel comes for each group: 16 scales (and 16 offsets) in bfloat16, then the codes, two inputs of a column beside each
 * other: of eight bits [16 pairs][16 columns][2]; of four bits [8][16 columns][2] bytes, the pair of inputs 4i, 4i + 1 in their lower
 * halves and 4i + 2, 4i + 3 in their upper ones.
 */
#define ROUNDED_MOST 32767 /* sums of a group stay far below 2^31 */
#define INT8_GROUP_BYTES (32 + 512)
#define INT4_GROUP_BYTES (64 + 256)

/* A rounded row: for each group its scale, its sum, and 16 pairs of inputs, two numbers of 16 bits each. */
typedef struct {
    float scale, sum;
    uint32_t pairs[GROUP / 2];
} RoundedGroup;

static void round_row(const float *row, int64_t inputs, RoundedGroup *groups) {
    for (int64_t group = 0; group < inputs / GROUP; group++, row += GROUP, groups++) {
        float most = 0.0f, strange = 0.0f; /* NaN where a number is not finite */
        for (int k = 0; k < GROUP; k++) {
            most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
            strange += row[k] - row[k];
        }
        if (strange != strange) most = 0.0f;
        float inverse = most > 0.0f ? ROUNDED_MOST / most : 0.0f;
        int32_t sum = 0;
        for (int pair = 0; pair < GROUP / 2; pair++) {
            int32_t one = (int32_t)lrintf(row[2 * pair] * inverse), two = (int32_t)lrintf(row[2 * pair + 1] * inverse);
            sum += one + two;
            groups->pairs[pair] = (uint32_t)(one & 0xffff) | (uint32_t)two << 16;
        }
        groups->scale = most / ROUNDED_MOST;
        groups->sum = (float)sum * groups->scale;
        if (strange != strange) groups->scale = groups->sum = NAN;
    }
}

#ifdef __AVX2__
typedef __m256 sums8;

INLINE sums8 load8_bf16(const char *group, int first) {
    __m128i numbers = _mm_loadu_si128((const __m128i *)(group + 2 * first));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(numbers), 16));
}

INLINE void add_pair(const int rows, const RoundedGroup *const *from, int pair, __m256i low, __m256i high, __m256i (*whole)[2]) {
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        __m256i both = _mm256_set1_epi32((int)from[row]->pairs[pair]);
        whole[row][0] = _mm256_add_epi32(whole[row][0], _mm256_madd_epi16(low, both));
        whole[row][1] = _mm256_add_epi32(whole[row][1], _mm256_madd_epi16(high, both));
    }
}

INLINE void sum_int8(const int rows, const RoundedGroup *const *from, const char *codes, __m256i (*whole)[2]) {
#pragma GCC unroll 4
    for (int pair = 0; pair < GROUP / 2; pair++) {
        __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + pair * 32)));
        __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + pair * 32 + 16)));
        add_pair(rows, from, pair, low, high, whole);
    }
}

/* Pairs of inputs 2 * step and 2 * step + 1 of 8 columns. */
INLINE void read_int4(const char *codes, int step, int half, __m256i *even, __m256i *odd) {
    __m256i both = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(codes + step * 32 + half * 16)));
    *even = _mm256_and_si256(both, _mm256_set1_epi16(15));
    *odd = _mm256_srli_epi16(both, 4);
}

INLINE void sum_int4(const int rows, const RoundedGroup *const *from, const char *codes, __m256i (*whole)[2]) {
    __m256i wide[GROUP / 2][2]; /* several rows read codes that lie apart already: there are too few registers for both */
#pragma GCC unroll 8
    for (int step = 0; step < GROUP / 4; step++) {
        __m256i low[2], high[2];
        read_int4(codes, step, 0, low, low + 1);
        read_int4(codes, step, 1, high, high + 1);
#pragma GCC unroll 2
        for (int each = 0; each < 2; each++) {
            if (rows <= 2) add_pair(rows, from, 2 * step + each, low[each], high[each], whole);
            else wide[2 * step + each][0] = low[each], wide[2 * step + each][1] = high[each];
        }
    }
    if (rows > 2)
#pragma GCC unroll 4
        for (int pair = 0; pair < GROUP / 2; pair++) add_pair(rows, from, pair, wide[pair][0], wide[pair][1], whole);
}

INLINE void add_group(const int rows, const int kind, const RoundedGroup *const *from, const char *group, sums8 (*sums)[2]) {
    __m256i whole[MOST_ROWS][2];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) whole[row][0] = whole[row][1] = _mm256_setzero_si256();
    if (kind == INT8) sum_int8(rows, from, group + 32, whole);
    else sum_int4(rows, from, group + 64, whole);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m256 scale = _mm256_mul_ps(load8_bf16(group, half * 8), _mm256_set1_ps(from[row]->scale));
            sums[row][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[row][half]), scale, sums[row][half]);
            if (kind == INT4)
                sums[row][half] = _mm256_fmadd_ps(load8_bf16(group, 16 + half * 8), _mm256_set1_ps(from[row]->sum), sums[row][half]);
        }
}

INLINE void tile_codes(const int rows, const int panels, const int kind, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, float *to) {
    const int64_t group_bytes = kind == INT8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;
    for (int panel = 0; panel < panels; panel++) {
        const char *group = (const char *)matrix->numbers + (first + panel) * matrix->panel_bytes + stretch->begin / GROUP * group_bytes;
        sums8 sums[MOST_ROWS][2];
        const RoundedGroup *rounded[MOST_ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                sums[row][half] = stretch->begin ? _mm256_loadu_ps(to + (row * MOST_PANELS + panel) * PANEL + half * 8) : _mm256_setzero_ps();
            rounded[row] = (const RoundedGroup *)from[row] + stretch->begin / GROUP;
        }
        const char *ask = group + stretch->ahead;
        const int64_t step = group_bytes / stretch->turns;
        for (int64_t k = stretch->begin; k < stretch->end; k += GROUP, group += group_bytes, ask += step) {
            for (int64_t line = 0; line < step; line += 64) __builtin_prefetch(ask + line);
            add_group(rows, kind, rounded, group, sums);
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) rounded[row]++;
        }
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            _mm256_storeu_ps(to + (row * MOST_PANELS + panel) * PANEL, sums[row][0]);
            _mm256_storeu_ps(to + (row * MOST_PANELS + panel) * PANEL + 8, sums[row][1]);
        }
    }
}
#else
INLINE void tile_codes(const int rows, const int panels, const int kind, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, float *to) {
    const int64_t group_bytes = kind == INT8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;
    for (int row = 0; row < rows; row++)
        for (int panel = 0; panel < panels; panel++) {
            const char *group = (const char *)matrix->numbers + (first + panel) * matrix->panel_bytes + stretch->begin / GROUP * group_bytes;
            const RoundedGroup *rounded = (const RoundedGroup *)from[row] + stretch->begin / GROUP;
            float sums[PANEL] = {0};
            if (stretch->begin) memcpy(sums, to + (row * MOST_PANELS + panel) * PANEL, sizeof sums);
            for (int64_t k = stretch->begin; k < stretch->end; k += GROUP, group += group_bytes, rounded++) {
                int32_t whole[PANEL] = {0};
                for (int pair = 0; pair < GROUP / 2; pair++) {
                    uint32_t both = rounded->pairs[pair];
                    int32_t one = (int16_t)both, two = (int16_t)(both >> 16);
                    for (int column = 0; column < PANEL; column++) {
                        if (kind == INT8) {
                            const int8_t *codes = (const int8_t *)(group + 32) + pair * 32 + column * 2;
                            whole[column] += codes[0] * one + codes[1] * two;
                        } else {
                            const uint8_t *codes = (const uint8_t *)(group + 64) + pair / 2 * 32 + column * 2;
                            int shift = pair % 2 * 4;
                            whole[column] += (codes[0] >> shift & 15) * one + (codes[1] >> shift & 15) * two;
                        }
                    }
                }
                const uint16_t *scales = (const uint16_t *)group;
                for (int column = 0; column < PANEL; column++) {
                    sums[column] = fmaf((float)whole[column], from_bf16(scales[column]) * rounded->scale, sums[column]);
                    if (kind == INT4) sums[column] = fmaf(from_bf16(scales[16 + column]), rounded->sum, sums[column]);
                }
            }
            memcpy(to + (row * MOST_PANELS + panel) * PANEL, sums, sizeof sums);
        }
}
#endif

/* ---- tiles of every kind ------------------------------------------------------------------------------------------ */

/* Results of `rows` rows in `panels` panels from `first` on, over part of the inputs: [rows][MOST_PANELS * PANEL]. */
INLINE void tile_of(const int rows, const int panels, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, float *to) {
    switch (matrix->kind) {
    case F32: tile_numbers(rows, panels, F32, from, matrix, first, stretch, to); break;
    case BF16: tile_numbers(rows, panels, BF16, from, matrix, first, stretch, to); break;
    case INT8: tile_codes(rows, panels, INT8, from, matrix, first, stretch, to); break;
    default: tile_codes(rows, panels, INT4, from, matrix, first, stretch, to);
    }
}

/* How many panels are best done at once with so many rows: results that fit the registers, enough of them to hide latencies. */
INLINE int panels_at_once(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

static void tile(int rows, int panels, const void *const *from, const Matrix *matrix, int64_t first, const Stretch *stretch, float *to) {
    switch (rows * 8 + panels) {
    case 8 + 4: tile_of(1, 4, from, matrix, first, stretch, to); break;
    case 8 + 3: tile_of(1, 3, from, matrix, first, stretch, to); break;
    case 8 + 2: tile_of(1, 2, from, matrix, first, stretch, to); break;
    case 8 + 1: tile_of(1, 1, from, matrix, first, stretch, to); break;
    case 16 + 2: tile_of(2, 2, from, matrix, first, stretch, to); break;
    case 16 + 1: tile_of(2, 1, from, matrix, first, stretch, to); break;
    case 24 + 1: tile_of(3, 1, from, matrix, first, stretch, to); break;
    case 32 + 1: tile_of(4, 1, from, matrix, first, stretch, to); break;
    default: tile_of(5, 1, from, matrix, first, stretch, to);
    }
}

/* ---- one number of a matrix, as it was packed ---------------------------------------------------------------------- */

INLINE float weight_at(const Matrix *matrix, int64_t column, int64_t k) {
    const char *panel = (const char *)matrix->numbers + column / PANEL * matrix->panel_bytes;
    int64_t lane = column % PANEL;
    if (matrix->kind == F32) return ((const float *)panel)[k * PANEL + lane];
    if (matrix->kind == BF16) return from_bf16(((const uint16_t *)panel)[(k / 2 * PANEL + lane) * 2 + k % 2]);
    if (matrix->kind == INT8) {
        const char *group = panel + k / GROUP * INT8_GROUP_BYTES;
        return from_bf16(((const uint16_t *)group)[lane]) * (float)((const int8_t *)(group + 32))[k % GROUP / 2 * 32 + lane * 2 + k % 2];
    }
    const char *group = panel + k / GROUP * INT4_GROUP_BYTES;
    int code = ((const uint8_t *)(group + 64))[k % GROUP / 4 * 32 + lane * 2 + k % 2] >> (k / 2 % 2 * 4) & 15;
    return fmaf(from_bf16(((const uint16_t *)group)[lane]), (float)code, from_bf16(((const uint16_t *)group)[16 + lane]));
}

#endif
