// Short rows that follow each other without gaps: a block copies several, whatever their length, by vectors of 16 bytes.

namespace xsoftmax {

// By all threads of a block; both places are multiples of 16 bytes.
template <int threads, class E>
XS_FUNCTION void copy(const E* from, E* to, int elements) {
    constexpr int n = 16 / sizeof(E), together = 4;
    typedef Vector<E, n> Elements;
    const int vectors = elements / n;
    for (int i = threadIdx.x; i < vectors; i += together * threads) {
        Elements read[together];
#pragma unroll
        for (int k = 0; k < together; ++k) {
            if (i + k * threads < vectors) read[k] = reinterpret_cast<const Elements*>(from)[i + k * threads];
        }
#pragma unroll
        for (int k = 0; k < together; ++k) {
            if (i + k * threads < vectors) reinterpret_cast<Elements*>(to)[i + k * threads] = read[k];
        }
    }
    for (int i = vectors * n + threadIdx.x; i < elements; i += threads) to[i] = from[i];
}

// Results take the place of logits in the tile. Threads have 16 elements of it.
template <class P, class Team, int chunks>
__global__ void __launch_bounds__(Team::threads) tiled(const Arguments a) {
    typedef typename P::T T;
    typedef typename P::U U;
    constexpr int rows = Team::rows * (16 / chunks), threads = Team::threads;
    static_assert(rows * sizeof(T) % 16 == 0, "tiles start at multiples of 16 bytes");
    Team team;
    const int classes = int(a.classes);
    T* x = static_cast<T*>(row_space());
    U* targets = reinterpret_cast<U*>(x + rows * classes);
    for (Int64 first = Int64(blockIdx.x) * rows; first < a.rows; first += Int64(gridDim.x) * rows) {
        const Int64 begin = first * classes, left = a.rows - first;
        const int elements = int(left < rows ? left : rows) * classes;
        copy<threads>(static_cast<const T*>(a.x.data) + begin, x, elements);
        const bool has_targets = P::has_targets && a.targets.data;
        if (has_targets) copy<threads>(static_cast<const U*>(a.targets.data) + begin, targets, elements);
        __syncthreads();
        for (Int64 row = first; row < first + rows && row < a.rows; row += Team::rows) {
            View<P> view(a, row + team.slot);
            const int place = int(view.row - first) * classes;
            view.x = x + place;
            view.y = a.y.data ? x + place : nullptr;
            view.targets = has_targets ? targets + place : nullptr;
            if constexpr (P::product) {
                product_in_registers<1, chunks>(view, team);
            } else {
                in_registers<1, chunks>(view, team);
            }
        }
        __syncthreads();
        if (!a.y.data) continue;
        copy<threads>(x, static_cast<T*>(a.y.data) + begin, elements);
        __syncthreads();
    }
}

}  // namespace xsoftmax
