// What runs between the networks on a GPU. Compiled by NVRTC when a GPU is opened; the noise is that of
// bfr/runtime/noise.py, element for element. Built without contraction of a * b + c, as NumPy computes.

#ifndef BFR_DEVICE
#define BFR_DEVICE static __device__ __forceinline__
#define BFR_KERNEL extern "C" __global__
#define BFR_NANOSECONDS(into) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(into))
#endif

// 32 random bits as a float32 in (0, 1]: the middle of its interval, so that its logarithm is finite.
BFR_DEVICE float uniform(unsigned int word) {
    return (float)word * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
}

// Philox4x32-10 (Salmon et al., SC 2011).
BFR_DEVICE void philox(unsigned int* x, unsigned int key0, unsigned int key1) {
    for (int r = 0; r < 10; ++r) {
        const unsigned long long product0 = 0xD2511F53ull * x[0], product1 = 0xCD9E8D57ull * x[2];
        const unsigned int x1 = x[1], x3 = x[3];
        x[0] = (unsigned int)(product1 >> 32) ^ x1 ^ key0;
        x[1] = (unsigned int)product1;
        x[2] = (unsigned int)(product0 >> 32) ^ x3 ^ key1;
        x[3] = (unsigned int)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Standard normals of one step. out: (B, 4 * quads) float32. keys: (B, 2), seed and image of each. Grid (quads, B).
BFR_KERNEL void fill_normal(float* out, const unsigned int* keys, unsigned int step, unsigned int quads) {
    const unsigned int quad = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (quad >= quads) return;
    unsigned int words[4] = {quad, step, 0u, 0u};
    philox(words, keys[2 * image], keys[2 * image + 1]);
    float normals[4];
    for (int pair = 0; pair < 4; pair += 2) {
        // Box-Muller. sqrt and division are IEEE's; logf, sinf and cosf are within two units of the last place.
        const float radius = sqrtf(-2.0f * logf(uniform(words[pair])));
        const float angle = 6.283185307179586f * uniform(words[pair + 1]);
        normals[pair] = radius * cosf(angle);
        normals[pair + 1] = radius * sinf(angle);
    }
    float4* const target = (float4*)out + ((unsigned long long)image * quads + quad);
    *target = make_float4(normals[0], normals[1], normals[2], normals[3]);
}

// x = signal * estimate + sigma * noise, each (images, count) float32. levels: (images, 2), signal and sigma of each.
BFR_KERNEL void diffuse(
    float* x, const float* estimate, const float* noise, const float* levels, unsigned int count
) {
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int image = blockIdx.y;
    if (i >= count) return;
    const unsigned long long at = (unsigned long long)image * count + i;
    x[at] = levels[2 * image] * estimate[at] + levels[2 * image + 1] * noise[at];
}

// The time of the GPU's clock in nanoseconds, the one that libcu++'s std::chrono reads, into times[index].
BFR_KERNEL void stamp(unsigned long long* times, unsigned int index) {
    if (threadIdx.x) return;
    unsigned long long now;
    BFR_NANOSECONDS(now);
    times[index] = now;
}
