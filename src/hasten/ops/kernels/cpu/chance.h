// What dropout keeps: a hash of a seed and of places, so that forward and backward agree without a mask in memory.
#pragma once

#include <immintrin.h>

#include <cstdint>

// Lanes numbered from `start`.
inline __m512i counted_from(int start) {
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(count, _mm512_set1_epi32(start));
}

// A stream of decisions by number, of which there are 2^32; `share` of them are no.
struct Chance {
    uint32_t first, second, threshold;

    Chance(uint64_t seed, uint64_t stream, float share) : threshold(share * 4294967296.0) {
        uint64_t x = seed + (stream + 1) * 0x9e3779b97f4a7c15u;  // splitmix64 (Steele et al. 2014)
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        first = x, second = x >> 32;
    }

    // The decisions with these numbers.  Two rounds of shifting and multiplying, with Wellons' "lowbias32" constants.
    __mmask16 kept(__m512i numbers) const {
        __m512i x = _mm512_xor_si512(numbers, _mm512_set1_epi32(first));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7feb352d));
        x = _mm512_xor_si512(x, _mm512_set1_epi32(second));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(0x846ca68b));
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
        return _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32(threshold));
    }
};
