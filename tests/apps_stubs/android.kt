// Signatures of the Android platform that generated code uses; only assets are there.
package android.content

import android.content.res.AssetManager
import java.io.File
import java.io.InputStream

open class Context {
    open val assets: AssetManager get() = throw NotImplementedError()
    open val applicationContext: Context? get() = throw NotImplementedError()
    open val noBackupFilesDir: File get() = throw NotImplementedError()
    open val contentResolver: ContentResolver get() = throw NotImplementedError()
}

class ContentResolver {
    fun openInputStream(uri: android.net.Uri): InputStream? = throw NotImplementedError()
}
