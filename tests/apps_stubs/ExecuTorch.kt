// As org.pytorch:executorch-android 1.4.1 has them (extension/android in its repository).
package org.pytorch.executorch

import java.io.Closeable

abstract class Tensor internal constructor() {
    open val dataAsByteArray: ByteArray get() = throw NotImplementedError()
    open val dataAsUnsignedByteArray: ByteArray get() = throw NotImplementedError()
    open val dataAsIntArray: IntArray get() = throw NotImplementedError()
    open val dataAsFloatArray: FloatArray get() = throw NotImplementedError()
    open val dataAsLongArray: LongArray get() = throw NotImplementedError()

    companion object {
        @JvmStatic fun fromBlobUnsigned(data: ByteArray, shape: LongArray): Tensor = throw NotImplementedError()
        @JvmStatic fun fromBlob(data: ByteArray, shape: LongArray): Tensor = throw NotImplementedError()
        @JvmStatic fun fromBlob(data: IntArray, shape: LongArray): Tensor = throw NotImplementedError()
        @JvmStatic fun fromBlob(data: FloatArray, shape: LongArray): Tensor = throw NotImplementedError()
        @JvmStatic fun fromBlob(data: LongArray, shape: LongArray): Tensor = throw NotImplementedError()
    }
}

class EValue private constructor() {
    fun toTensor(): Tensor = throw NotImplementedError()

    companion object {
        @JvmStatic fun from(tensor: Tensor): EValue = throw NotImplementedError()
    }
}

open class Module private constructor() : Closeable {
    open fun forward(vararg inputs: EValue): Array<EValue> = throw NotImplementedError()
    open fun destroy(): Unit = throw NotImplementedError()
    override fun close() = Unit

    companion object {
        const val LOAD_MODE_FILE = 0
        const val LOAD_MODE_MMAP = 1

        @JvmStatic
        @JvmOverloads
        fun load(modelPath: String?, loadMode: Int = LOAD_MODE_FILE, numThreads: Int = 0): Module = throw NotImplementedError()
    }
}
