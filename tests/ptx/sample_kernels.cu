// CUDA C kernels on which the test tools themselves are tested.

extern "C" __global__ void dot(const float *x, const float *const *table, double *out, int n) {
    __shared__ double part[128];
    const float *y = table[blockIdx.x];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += (double)x[i] * y[i];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

struct Shape {
    int rows, columns;
    double scale;
};

// Local memory by a computed index, generic addresses, a structure as a parameter, threads in two dimensions.
extern "C" __global__ void mixed(const unsigned char *bytes, long long *out, float *scaled, Shape shape) {
    extern __shared__ int tile[];
    int column = threadIdx.x, row = threadIdx.y;
    int index = row * shape.columns + column;
    int digits[10];
    int value = bytes[index];
#pragma unroll 1
    for (int i = 0; i < 10; ++i) digits[(i * 3 + value) % 10] = i * value;
    tile[index] = digits[value % 10];
    __syncthreads();
    const int *from = value % 2 ? &tile[shape.rows * shape.columns - 1 - index] : &digits[(value + 5) % 10];
    out[index] = (long long)*from * -1000000007LL / (value + 1);
    scaled[index] = (float)(shape.scale * value);
}

extern "C" __global__ void one_sided(int *out) {
    __shared__ int seen[64];
    seen[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = seen[63 - threadIdx.x];
}
