// As com.google.ai.edge.litert 2.1.6 has them (litert/kotlin in its repository).
package com.google.ai.edge.litert

import android.content.res.AssetManager

enum class Accelerator(val value: Int) { NONE(0), CPU(1), GPU(2), NPU(3) }

abstract class JniHandle internal constructor(internal val handle: Long) : AutoCloseable {
    final override fun close() = Unit
}

class Environment private constructor(handle: Long) : JniHandle(handle)

class TensorBuffer internal constructor(handle: Long) : JniHandle(handle) {
    fun writeInt(data: IntArray): Unit = throw NotImplementedError()
    fun writeFloat(data: FloatArray): Unit = throw NotImplementedError()
    fun writeInt8(data: ByteArray): Unit = throw NotImplementedError()
    fun writeBoolean(data: BooleanArray): Unit = throw NotImplementedError()
    fun writeLong(data: LongArray): Unit = throw NotImplementedError()
    fun readInt(): IntArray = throw NotImplementedError()
    fun readFloat(): FloatArray = throw NotImplementedError()
    fun readInt8(): ByteArray = throw NotImplementedError()
    fun readBoolean(): BooleanArray = throw NotImplementedError()
    fun readLong(): LongArray = throw NotImplementedError()
}

class CompiledModel private constructor(handle: Long) : JniHandle(handle) {
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    class Options(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))

        var cpuOptions: CpuOptions? = null

        companion object {
            @JvmStatic val CPU = Options(Accelerator.CPU)
        }
    }

    fun createInputBuffer(inputName: String, signature: String = ""): TensorBuffer = TensorBuffer(0)
    fun createOutputBuffer(outputName: String, signature: String = ""): TensorBuffer = TensorBuffer(0)

    @JvmOverloads
    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>, signatureIndex: Int = 0): Unit = throw NotImplementedError()
    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String = ""): Unit = throw NotImplementedError()

    companion object {
        @JvmOverloads
        @JvmStatic
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options.CPU,
            optionalEnv: Environment? = null,
        ): CompiledModel = assetManager.open(assetName).use { CompiledModel(0) }

        @JvmOverloads
        @JvmStatic
        fun create(filePath: String, options: Options = Options.CPU, optionalEnv: Environment? = null): CompiledModel =
            throw NotImplementedError()
    }
}
