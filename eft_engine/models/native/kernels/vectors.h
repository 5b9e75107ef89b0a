/* Vectors of single precision as wide as the processor has them, and the few functions that a decoder needs of them.
 *
 * A product's columns lie in panels of 16. A vector never mixes columns, so that a result is one chain of fused multiply-adds over
 * its inputs in their order, whatever stands beside it.
 */
#ifndef EFT_VECTORS_H
#define EFT_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define PANEL 16
#define PARTS (PANEL / WIDTH)
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));
typedef floats floats_at __attribute__((aligned(4), may_alias));
typedef words words_at __attribute__((aligned(4), may_alias));
typedef halves halves_at __attribute__((aligned(2), may_alias));

INLINE floats load(const float *from) { return *(const floats_at *)from; }
INLINE void store(float *to, floats value) { *(floats_at *)to = value; }
INLINE floats all(float value) { return value - (floats){}; }

/* bfloat16 is the upper half of single precision. */
INLINE floats load_bf16(const uint16_t *from) {
    return (floats)(__builtin_convertvector(*(const halves_at *)from, words) << 16);
}
INLINE float from_bf16(uint16_t value) {
    uint32_t word = (uint32_t)value << 16;
    float number;
    memcpy(&number, &word, 4);
    return number;
}
/* To the nearest, ties to even, as torch rounds; NaN stays NaN. */
INLINE uint16_t to_bf16(float number) {
    uint32_t word;
    memcpy(&word, &number, 4);
    if ((word & 0x7fffffff) > 0x7f800000) return (uint16_t)((word >> 16) | 64);
    return (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

INLINE floats pick(ints condition, floats yes, floats no) {
    return (floats)(((ints)yes & condition) | ((ints)no & ~condition));
}
INLINE floats larger(floats a, floats b) { return pick(a > b, a, b); }
INLINE floats smaller(floats a, floats b) { return pick(a < b, a, b); }

/* exp of numbers up to 88; 0 below -87.3 (Cephes' expf: to about one unit in the last place). */
INLINE floats exponential(floats x) {
    const floats given = x;
    x = smaller(larger(x, all(-87.3f)), all(88.3f));
    floats scaled = x * 1.44269504088896341f;
    ints whole = __builtin_convertvector(scaled + pick(scaled < 0.0f, all(-0.5f), all(0.5f)), ints);
    floats n = __builtin_convertvector(whole, floats);
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    floats y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    floats power = (floats)((whole + 127) << 23);
    y = pick(given < -87.3f, all(0.0f), y * power);
    return pick(given == given, y, given); /* NaN stays */
}

enum { SILU, GELU_TANH, GELU };

INLINE floats activated(int activation, floats x) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == GELU_TANH) return x / (1.0f + exponential(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    for (int lane = 0; lane < WIDTH; lane++) x[lane] *= 0.5f * (1.0f + erff(x[lane] * 0.70710678118654752f));
    return x;
}

INLINE float sum_of(floats value) {
    float sum = 0.0f;
    for (int lane = 0; lane < WIDTH; lane++) sum += value[lane];
    return sum;
}
INLINE float largest_of(floats value) {
    float largest = value[0];
    for (int lane = 1; lane < WIDTH; lane++) largest = value[lane] > largest ? value[lane] : largest;
    return largest;
}

#endif
