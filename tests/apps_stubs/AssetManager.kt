package android.content.res

import java.io.Closeable
import java.io.FileDescriptor
import java.io.InputStream

class AssetManager {
    fun open(fileName: String): InputStream = throw NotImplementedError()
    fun openFd(fileName: String): AssetFileDescriptor = throw NotImplementedError()
}

class AssetFileDescriptor : Closeable {
    val fileDescriptor: FileDescriptor get() = throw NotImplementedError()
    val startOffset: Long get() = throw NotImplementedError()
    val declaredLength: Long get() = throw NotImplementedError()
    override fun close() = Unit
}
