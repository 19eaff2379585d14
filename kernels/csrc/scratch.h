// Memory of a product and of each thread.

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Memory that a thread keeps for the next product: fresh pages would cost as much as the work on them.
struct Scratch {
    char *memory = nullptr;
    int64_t size = 0, used = 0;

    ~Scratch() { free(memory); }

    bool reserve(int64_t bytes) {
        used = 0;
        if (bytes <= size) return true;
        free(memory);
        memory = (char *)aligned_alloc(64, round_up(bytes, 64));
        size = memory ? bytes : 0;
        return memory != nullptr;
    }

    template <class T>
    T *take(int64_t n) {
        T *start = (T *)(memory + used);
        used += bytes_of<T>(n);
        return start;
    }

    template <class T>
    static int64_t bytes_of(int64_t n) { return round_up(n * sizeof(T), 64); }
};

static thread_local Scratch of_call, of_thread;
